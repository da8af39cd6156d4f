//! \file cases.cpp
#include "cases.h"

#include <cstdio>

namespace vimdeploy
{
namespace testing
{
namespace
{

char const* nameOf(DType type)
{
    return type == DType::kFLOAT32 ? "float32" : type == DType::kFLOAT16 ? "float16" : "bfloat16";
}

char const* nameOf(Data data)
{
    constexpr char const* kNAMES[kDATA_COUNT]{
        "usual", "small_dt", "large_dt", "tiny_dt", "flat_a", "steep_a", "zero", "denormal"};
    return kNAMES[static_cast<int>(data)];
}

//! How groups walk: the models the contract names, and the pairings they leave out.
enum class Walk
{
    kMAMBA,      //!< [1]
    kREVERSED,   //!< [-1]
    kVIM,        //!< [1, -1]
    kVIM_SHARED, //!< [1, -1], u and x_dbl shared (v1)
    kVMAMBA,     //!< [1, 1, -1, -1], walks [0, 1, 0, 1]
    kV051D,      //!< [1, 1, 1, 1]
    kV052D,      //!< [1, 1, -1, -1]
    kMIXED,      //!< [-1, 1, 1, 1], walks [1, 0, 0, 0]: passes of two, one and one sides
    kCOLUMN,     //!< [1], walk [1]
    kTWO_WALKS,  //!< [1, -1], walks [0, 1]
};
constexpr int kWALK_COUNT = 10;

struct WalkFacts
{
    char const* name;
    int32_t groups;
    int32_t directions[4];
    int32_t columnMajor[4];
    bool shared;
};

WalkFacts const& factsOf(Walk walk)
{
    static constexpr WalkFacts kFACTS[kWALK_COUNT]{
        {"mamba", 1, {1}, {0}, false},
        {"reversed", 1, {-1}, {0}, false},
        {"vim", 2, {1, -1}, {0, 0}, false},
        {"vim_shared", 2, {1, -1}, {0, 0}, true},
        {"vmamba", 4, {1, 1, -1, -1}, {0, 1, 0, 1}, true},
        {"v051d", 4, {1, 1, 1, 1}, {0, 0, 0, 0}, true},
        {"v052d", 4, {1, 1, -1, -1}, {0, 0, 0, 0}, true},
        {"mixed", 4, {-1, 1, 1, 1}, {1, 0, 0, 0}, false},
        {"column", 1, {1}, {1}, false},
        {"two_walks", 2, {1, -1}, {0, 1}, false},
    };
    return kFACTS[static_cast<int>(walk)];
}

//! \param height 0: the largest divisor of L not above its root
ScanCase makeCase(Walk walk, DType type, ScanVariant variant, int64_t batch, int64_t length, int32_t channels,
    int32_t states, int32_t rank, bool gated, Data data = Data::kUSUAL, int32_t height = 0)
{
    WalkFacts const& facts = factsOf(walk);
    ScanCase result;
    ScanShape& shape = result.shape;
    shape.batch = batch;
    shape.length = length;
    shape.channels = channels;
    shape.states = states;
    shape.rank = rank;
    shape.groups = facts.groups;
    for (int32_t g = 0; g < facts.groups; ++g)
    {
        shape.directions[g] = facts.directions[g];
        shape.columnMajor[g] = facts.columnMajor[g];
    }
    shape.sharedU = facts.shared;
    shape.sharedXDbl = walk == Walk::kVIM_SHARED;
    shape.gated = gated;
    shape.scale = walk == Walk::kVIM ? 0.5F : 1.0F;
    shape.type = type;
    shape.height = height;
    for (int32_t h = 1; height == 0 && static_cast<int64_t>(h) * h <= length; ++h)
    {
        shape.height = length % h == 0 ? h : shape.height;
    }
    result.variant = variant;
    result.data = data;
    return result;
}

constexpr DType kTYPES[]{DType::kFLOAT32, DType::kFLOAT16, DType::kBFLOAT16};

//! Every variant, type and walk once, at shapes that are a multiple of nothing.
void addEachOnce(std::vector<ScanCase>& cases)
{
    struct Form
    {
        int32_t states;
        ScanVariant variant;
    };
    constexpr Form kFORMS[]{{16, ScanVariant::kTHREAD_16}, {16, ScanVariant::kTHREAD_8}, {16, ScanVariant::kTHREAD_4},
        {16, ScanVariant::kCHUNKED}, {16, ScanVariant::kGENERIC}, {8, ScanVariant::kTHREAD_8},
        {8, ScanVariant::kTHREAD_4}, {8, ScanVariant::kCHUNKED}, {1, ScanVariant::kTHREAD_1},
        {1, ScanVariant::kCHUNKED}, {5, ScanVariant::kGENERIC}, {12, ScanVariant::kGENERIC},
        {24, ScanVariant::kCHUNKED}, {64, ScanVariant::kGENERIC}};
    int turn = 0;
    for (Form const& form : kFORMS)
    {
        for (DType const type : kTYPES)
        {
            int64_t const length = form.variant == ScanVariant::kCHUNKED ? 135 : 45;
            auto const walk = static_cast<Walk>(turn % kWALK_COUNT);
            int32_t const channels = turn % 3 == 0 ? 24 : turn % 3 == 1 ? 19 : 72;
            bool const gated = turn % 4 != 3;
            cases.push_back(makeCase(
                walk, type, form.variant, 1 + turn % 2, length, channels, form.states, turn % 2 == 0 ? 12 : 3, gated));
            ++turn;
        }
    }
}

//! All walks, gated or not, on the two forms that differ most.
void addWalks(std::vector<ScanCase>& cases)
{
    for (int walk = 0; walk < kWALK_COUNT; ++walk)
    {
        for (bool const gated : {true, false})
        {
            cases.push_back(makeCase(static_cast<Walk>(walk), DType::kFLOAT16, ScanVariant::kTHREAD_16, 1, 63, 40, 16,
                4, gated, Data::kUSUAL, 7));
            cases.push_back(makeCase(static_cast<Walk>(walk), DType::kFLOAT32, ScanVariant::kCHUNKED, 1, 99, 20, 8, 5,
                gated, Data::kUSUAL, 9));
        }
    }
}

//! Lengths across every tile edge, and one token.
void addLengths(std::vector<ScanCase>& cases, int64_t longest)
{
    for (int64_t length = 1; length <= longest; ++length)
    {
        DType const type = kTYPES[length % 3];
        cases.push_back(makeCase(Walk::kVIM, type, ScanVariant::kTHREAD_16, 1, length, 16, 16, 4, true));
        cases.push_back(makeCase(Walk::kVIM, type, ScanVariant::kTHREAD_4, 1, length, 9, 16, 4, true));
        cases.push_back(makeCase(Walk::kVMAMBA, type, ScanVariant::kTHREAD_1, 1, length, 8, 1, 3, length % 2 == 0));
    }
}

//! Data that breaks: each kind in each type, in one pass and chunked.
void addData(std::vector<ScanCase>& cases)
{
    for (int data = 1; data < kDATA_COUNT; ++data)
    {
        for (DType const type : kTYPES)
        {
            cases.push_back(
                makeCase(Walk::kVIM, type, ScanVariant::kTHREAD_16, 1, 197, 24, 16, 12, true, static_cast<Data>(data)));
            cases.push_back(
                makeCase(Walk::kVIM, type, ScanVariant::kCHUNKED, 1, 150, 24, 16, 12, false, static_cast<Data>(data)));
        }
    }
}

//! Ranks up to the limit, with and without room for dt_weight in shared memory; addresses one element off.
void addRanksAndAlignment(std::vector<ScanCase>& cases)
{
    for (int32_t const rank : {1, 2, 6, 24, 48, 127, 128})
    {
        cases.push_back(makeCase(Walk::kVIM, DType::kFLOAT32, ScanVariant::kTHREAD_16, 1, 19, 40, 16, rank, true));
        cases.push_back(makeCase(Walk::kVIM, DType::kFLOAT16, ScanVariant::kTHREAD_8, 1, 19, 40, 16, rank, true));
    }
    for (DType const type : kTYPES)
    {
        cases.push_back(makeCase(Walk::kVIM, type, ScanVariant::kTHREAD_16, 2, 21, 24, 16, 12, true));
        cases.back().misaligned = true;
    }
}

//! Delta given: every variant, both directions, gated and not, groups of channels that no block divides.
void addGivenDelta(std::vector<ScanCase>& cases, bool all)
{
    struct Form
    {
        int32_t states;
        ScanVariant variant;
        int32_t channels;
        int32_t channelGroups;
    };
    constexpr Form kFORMS[]{{16, ScanVariant::kTHREAD_16, 72, 1}, {16, ScanVariant::kTHREAD_16, 144, 2},
        {16, ScanVariant::kTHREAD_8, 40, 5}, {16, ScanVariant::kTHREAD_4, 19, 1}, {16, ScanVariant::kCHUNKED, 57, 3},
        {8, ScanVariant::kTHREAD_8, 66, 2}, {8, ScanVariant::kTHREAD_4, 24, 1}, {1, ScanVariant::kTHREAD_1, 130, 1},
        {1, ScanVariant::kCHUNKED, 24, 4}, {5, ScanVariant::kGENERIC, 22, 2}, {24, ScanVariant::kCHUNKED, 11, 1},
        {64, ScanVariant::kGENERIC, 24, 3}};
    int turn = 0;
    for (Form const& form : kFORMS)
    {
        for (DType const type : kTYPES)
        {
            for (int flags = 0; flags < (all ? 8 : 1); ++flags)
            {
                int const bits = all ? flags : turn % 8;
                int64_t const length = form.variant == ScanVariant::kCHUNKED ? 135 : 37;
                cases.push_back(makeCase(bits % 2 == 0 ? Walk::kMAMBA : Walk::kREVERSED, type, form.variant,
                    1 + turn % 2, length, form.channels, form.states, 1, (bits & 2) == 0));
                ScanShape& shape = cases.back().shape;
                shape.givenDelta = true;
                shape.rank = 0;
                shape.channelGroups = form.channelGroups;
                shape.deltaSoftplus = (bits & 4) == 0;
                cases.back().misaligned = turn % 7 == 6;
                ++turn;
            }
        }
    }
}

//! Every number of multiprocessors cuts a long sequence into other chunks.
void addSmCounts(std::vector<ScanCase>& cases, std::vector<int32_t> const& counts)
{
    constexpr int32_t kSTATES[]{16, 8, 1, 24};
    for (std::size_t i = 0; i < counts.size(); ++i)
    {
        cases.push_back(makeCase(static_cast<Walk>(counts[i] % kWALK_COUNT), kTYPES[i % 3], ScanVariant::kCHUNKED,
            1 + counts[i] % 3, 199 + counts[i], 40, kSTATES[i % 4], 4, i % 2 == 0, Data::kUSUAL));
        cases.back().smCount = counts[i];
    }
}

//! The models themselves, one block of channels of them.
void addModels(std::vector<ScanCase>& cases, int32_t channels)
{
    for (DType const type : kTYPES)
    {
        cases.push_back(makeCase(Walk::kVIM, type, ScanVariant::kNONE, 1, 197, channels, 16, 12, true));
        cases.push_back(makeCase(Walk::kVIM, type, ScanVariant::kTHREAD_16, 1, 197, channels, 16, 24, true));
    }
    cases.push_back(
        makeCase(Walk::kVMAMBA, DType::kFLOAT16, ScanVariant::kNONE, 1, 196, channels, 1, 6, false, Data::kUSUAL, 14));
    cases.push_back(makeCase(
        Walk::kVMAMBA, DType::kFLOAT16, ScanVariant::kTHREAD_16, 1, 49, channels, 16, 6, false, Data::kUSUAL, 7));
}

ConvCase makeConv(DType type, int64_t batch, int64_t length, int32_t channels, int32_t width, int turn)
{
    ConvCase result;
    ConvShape& shape = result.shape;
    shape.batch = batch;
    shape.length = length;
    shape.channels = channels;
    shape.width = width;
    constexpr int32_t kGROUPS[]{1, 2, 4};
    shape.groups = kGROUPS[turn % 3];
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        shape.directions[g] = (g + turn) % 2 == 0 ? 1 : -1;
    }
    shape.silu = turn % 4 != 3;
    shape.type = type;
    result.misaligned = turn % 5 == 4;
    return result;
}

} // namespace

std::string nameOf(ScanCase const& scan)
{
    ScanShape const& s = scan.shape;
    char walks[16]{};
    for (int32_t g = 0; g < s.groups; ++g)
    {
        walks[2 * g] = s.directions[g] > 0 ? '+' : '-';
        walks[2 * g + 1] = s.columnMajor[g] != 0 ? 'c' : 'r';
    }
    char text[256];
    std::snprintf(text, sizeof(text),
        "scan %s variant=%d SMs=%d B=%lld L=%lld E=%d N=%d R=%d P=%d %s%s%s%s%s H=%d data=%s%s", nameOf(s.type),
        static_cast<int>(scan.variant), scan.smCount, static_cast<long long>(s.batch), static_cast<long long>(s.length),
        s.channels, s.states, s.rank, s.channelGroups, walks,
        s.givenDelta ? s.deltaSoftplus ? " given+softplus" : " given" : "", s.sharedU ? " u-shared" : "",
        s.sharedXDbl ? " x-shared" : "", s.gated ? " gated" : "", s.height, nameOf(scan.data),
        scan.misaligned ? " misaligned" : "");
    return text;
}

std::string nameOf(ConvCase const& conv)
{
    ConvShape const& s = conv.shape;
    char text[256];
    std::snprintf(text, sizeof(text), "conv %s B=%lld L=%lld E=%d K=%d G=%d %s%s%s", nameOf(s.type),
        static_cast<long long>(s.batch), static_cast<long long>(s.length), s.channels, s.width, s.groups,
        s.directions[0] > 0 ? "+" : "-", s.silu ? " silu" : "", conv.misaligned ? " misaligned" : "");
    return text;
}

std::vector<ScanCase> scanCases(std::string const& grid)
{
    std::vector<ScanCase> cases;
    addEachOnce(cases);
    addGivenDelta(cases, grid == "full");
    if (grid == "small")
    {
        cases.push_back(makeCase(Walk::kVIM, DType::kFLOAT16, ScanVariant::kTHREAD_16, 1, 53, 64, 16, 12, true));
        cases.push_back(makeCase(Walk::kVIM, DType::kFLOAT16, ScanVariant::kTHREAD_4, 1, 37, 24, 16, 12, true));
        cases.push_back(makeCase(Walk::kVMAMBA, DType::kFLOAT32, ScanVariant::kTHREAD_8, 1, 35, 33, 16, 6, false));
        cases.push_back(
            makeCase(Walk::kVIM, DType::kFLOAT16, ScanVariant::kTHREAD_16, 1, 300, 8, 16, 12, false, Data::kSMALL_DT));
        return cases;
    }
    addWalks(cases);
    addLengths(cases, grid == "full" ? 140 : 67);
    addData(cases);
    addRanksAndAlignment(cases);
    addModels(cases, grid == "full" ? 384 : 72);
    std::vector<int32_t> counts{1, 2, 3, 14, 58, 108, 128, 256};
    for (int32_t count = 1; grid == "full" && count <= 256; ++count)
    {
        counts.push_back(count);
    }
    addSmCounts(cases, counts);
    if (grid == "full")
    {
        for (int32_t states = 1; states <= kMAX_STATES; ++states)
        {
            for (DType const type : kTYPES)
            {
                cases.push_back(makeCase(static_cast<Walk>(states % kWALK_COUNT), type, ScanVariant::kGENERIC, 1, 33,
                    11, states, 1 + states, true));
                cases.push_back(makeCase(static_cast<Walk>(states % kWALK_COUNT), type, ScanVariant::kCHUNKED, 1, 97,
                    11, states, 1 + states, false));
            }
        }
        for (int32_t channels = 1; channels <= 130; ++channels)
        {
            cases.push_back(
                makeCase(Walk::kVIM, kTYPES[channels % 3], ScanVariant::kTHREAD_16, 1, 18, channels, 16, 12, true));
            cases.push_back(
                makeCase(Walk::kVIM, kTYPES[channels % 3], ScanVariant::kTHREAD_4, 1, 18, channels, 16, 12, true));
        }
    }
    return cases;
}

std::vector<ConvCase> convCases(std::string const& grid)
{
    std::vector<ConvCase> cases;
    int turn = 0;
    int64_t const longest = grid == "small" ? 3 : grid == "full" ? 40 : 19;
    for (int32_t width = kMIN_CONV_WIDTH; width <= kMAX_CONV_WIDTH; ++width)
    {
        for (int64_t length = 1; length <= longest; ++length)
        {
            for (DType const type : kTYPES)
            {
                int32_t const channels = turn % 2 == 0 ? 12 : 7;
                cases.push_back(makeConv(type, 1 + turn % 2, length, channels, width, turn));
                ++turn;
            }
        }
        cases.push_back(makeConv(DType::kFLOAT16, 1, 197, 384, width, turn++));
    }
    return cases;
}

} // namespace testing
} // namespace vimdeploy
