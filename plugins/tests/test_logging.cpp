//! Messages reach the logger of the TensorRT that loaded us, also where its classes are laid out as in the other major.

#include "support.h"

#include "tensorrt/logging.h"

#include <gtest/gtest.h>

#include <dlfcn.h>

using namespace vimdeploy::test;

TEST(Logging, GoesThroughTheLoggerOfTheSameMajor)
{
    Listener listener;
    vimdeploy::logError("SelectiveScan", "a layer", "enqueue", "it is so");
    EXPECT_EQ(listener.text(), "vimdeploy SelectiveScan (a layer), enqueue: it is so\n");
    listener.clear();
    vimdeploy::logError("SelectiveScan", nullptr, "enqueue", "it is so");
    EXPECT_EQ(listener.text(), "vimdeploy SelectiveScan, enqueue: it is so\n");
    listener.clear();
    vimdeploy::logError("SelectiveScan", std::string(5000, 'x').c_str(), "enqueue", std::string(5000, 'y').c_str());
    EXPECT_LT(listener.text().size(), 1100U);
}

TEST(Logging, GoesThroughTheLoggerOfTheOtherMajor)
{
    void* const library = dlopen(VIMDEPLOY_OTHER_TENSORRT, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    void* const finder = reinterpret_cast<void* (*)()>(dlsym(library, "otherFinder"))();
    EXPECT_NE(vimdeploy::majorOf(finder), NV_TENSORRT_MAJOR);
    setLoggerFinder(static_cast<nvinfer1::ILoggerFinder*>(finder));
    vimdeploy::logError("SelectiveScan", "a layer", "enqueue", "it is so");
    setLoggerFinder(nullptr);
    auto const text = reinterpret_cast<char const* (*)()>(dlsym(library, "otherText"));
    EXPECT_STREQ(text(), "1 vimdeploy SelectiveScan (a layer), enqueue: it is so");
}
