"""Stand-ins for mamba_ssm and its compiled extensions: other people's models import, run and export without CUDA."""

from vimdeploy.interop.context import Substitution, substitute_mamba_ssm

__all__ = ["Substitution", "substitute_mamba_ssm"]
