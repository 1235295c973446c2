#include "ops/cuda/row_total_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

TEST(RowTotal, SumsInDoubleAndKeepsNan) {
  for (const int64_t rows : {1, 31, 512, 5000}) {
    auto losses = normal<float>(rows, 2, 1, 5);
    double wanted = 0;
    for (const float loss : losses) wanted += loss;
    float total = NAN;
    row_total(losses.data(), rows, 0.5, &total, nullptr);
    EXPECT_FLOAT_EQ(total, static_cast<float>(wanted * 0.5));
    losses[rows / 2] = NAN;
    row_total(losses.data(), rows, 0.5, &total, nullptr);
    EXPECT_TRUE(std::isnan(total));
  }
}

}  // namespace
}  // namespace exml::cuda
