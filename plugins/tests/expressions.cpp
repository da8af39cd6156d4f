#include "support.h"

#include <utility>

namespace vimdeploy::test
{
namespace
{

//! A constant or an unknown, behind the interface that the header's inline methods call.
class Expression
    : public nvinfer1::IDimensionExpr
    , public nvinfer1::apiv::VDimensionExpr
{
public:
    explicit Expression(int64_t value)
        : mValue(value)
    {
        mImpl = this;
    }

    bool isConstant() const override
    {
        return mValue != -1;
    }

    int64_t getConstantValue() const override
    {
        return mValue;
    }

    bool isSizeTensor() const override
    {
        return false;
    }

private:
    int64_t mValue;
};

} // namespace

class Expressions::Impl
    : public nvinfer1::IExprBuilder
    , public nvinfer1::apiv::VExprBuilder
{
public:
    Impl()
    {
        mImpl = this;
    }

    nvinfer1::IDimensionExpr const* constant(int64_t value) override
    {
        mExpressions.push_back(std::make_unique<Expression>(value));
        return mExpressions.back().get();
    }

    nvinfer1::IDimensionExpr const* operation(
        nvinfer1::DimensionOperation, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override
    {
        return constant(-1);
    }

    nvinfer1::IDimensionExpr const* declareSizeTensor(
        int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override
    {
        return nullptr;
    }

private:
    std::vector<std::unique_ptr<Expression>> mExpressions;
};

Expressions::Expressions()
    : mImpl(std::make_unique<Impl>())
{
}

Expressions::~Expressions() = default;

nvinfer1::IExprBuilder& Expressions::builder()
{
    return *mImpl;
}

nvinfer1::DimsExprs Expressions::symbolic(std::vector<int64_t> const& extents)
{
    nvinfer1::DimsExprs expressions{};
    expressions.nbDims = static_cast<int32_t>(extents.size());
    for (size_t i = 0; i < extents.size(); ++i)
    {
        expressions.d[i] = static_cast<nvinfer1::apiv::VExprBuilder&>(*mImpl).constant(extents[i]);
    }
    return expressions;
}

int64_t Expressions::valueOf(nvinfer1::IDimensionExpr const* expression)
{
    return expression->isConstant() ? expression->getConstantValue() : -1;
}

} // namespace vimdeploy::test
