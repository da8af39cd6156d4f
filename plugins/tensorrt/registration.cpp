#include "registration.h"

#include "causal_conv1d_plugin.h"
#include "creator.h"
#include "logging.h"
#include "selective_scan_delta_plugin.h"
#include "selective_scan_plugin.h"

#include <array>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept
{
    static vimdeploy::OpCreator<vimdeploy::CausalConv1dPlugin> sConv;
    static vimdeploy::OpCreator<vimdeploy::SelectiveScanPlugin> sScan;
    static vimdeploy::OpCreator<vimdeploy::SelectiveScanNoGatePlugin> sScanNoGate;
    static vimdeploy::OpCreator<vimdeploy::SelectiveScanDeltaPlugin> sDelta;
    static vimdeploy::OpCreator<vimdeploy::SelectiveScanDeltaNoGatePlugin> sDeltaNoGate;
    static std::array<nvinfer1::IPluginCreatorInterface*, 5> const sCreators{
        {&sConv, &sScan, &sScanNoGate, &sDelta, &sDeltaNoGate}};
    nbCreators = static_cast<int32_t>(sCreators.size());
    return sCreators.data();
}

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    vimdeploy::setFinder(finder);
}
