//! \file status.h
//! What a call came to: nothing, or a sentence that names the op and the tensor.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace vimdeploy::cpu
{

class Status
{
public:
    Status() noexcept = default;

    __attribute__((format(printf, 1, 2))) static Status error(char const* format, ...) noexcept
    {
        Status status;
        status.mFailed = true;
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(status.mText, sizeof status.mText, format, arguments);
        va_end(arguments);
        return status;
    }

    [[nodiscard]] bool failed() const noexcept
    {
        return mFailed;
    }

    [[nodiscard]] char const* text() const noexcept
    {
        return mText;
    }

private:
    bool mFailed{false};
    char mText[400]{};
};

} // namespace vimdeploy::cpu
