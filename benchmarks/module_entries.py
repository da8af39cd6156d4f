"""Entry points for models whose constructors take classes, which a command line cannot write; our code, not theirs."""

from torch import nn


def umamba_2d() -> nn.Module:
    from nnunetv2.nets.UMambaBot_2d import UMambaBot

    return UMambaBot(
        input_channels=1, n_stages=4, features_per_stage=[8, 16, 32, 64], conv_op=nn.Conv2d, kernel_sizes=[[3, 3]] * 4,
        strides=[[1, 1], [2, 2], [2, 2], [2, 2]],
        n_conv_per_stage=1, num_classes=2, n_conv_per_stage_decoder=1, conv_bias=True,
        norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def local_vim() -> nn.Module:
    from lib.models.local_vim import VisionMamba

    directions = [["h", "v_flip", "w7", "w7_flip"], ["h_flip", "w2_flip", "w7", "v"]]
    return VisionMamba(
        img_size=56, patch_size=4, depth=2, embed_dim=32, num_classes=10, rms_norm=True, residual_in_fp32=True,
        fused_add_norm=True, final_pool_type="mean", if_abs_pos_embed=True, bimamba_type="v2", directions=directions,
    )  # fmt: skip


def local_vmamba() -> nn.Module:
    from lib.models.local_vmamba import VSSM

    directions = [["h", "h_flip", "w7", "w7_flip"]] * 5
    return VSSM(dims=[16, 32, 64, 128], depths=[1, 1, 2, 1], d_state=16, num_classes=10, directions=directions)
