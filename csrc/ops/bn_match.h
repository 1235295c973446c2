// Distance between the channel statistics of an activation and given ones (Yin 2020, Eq. 4).
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

#include "math/statistics_distance.h"
#include "ops/channel_layout.h"

namespace exml {

Distance distance_from(const char* op, std::string_view name);
Moment moment_from(const char* op, std::string_view name);

// Loss (scalar) and what the backward pass needs: (3, C), PixelGradient by rows. Both in the accumulator's dtype.
std::tuple<at::Tensor, at::Tensor> bn_match_forward_cpu(const at::Tensor& x, const ChannelLayout& layout,
                                                        const at::Tensor& mean, const at::Tensor& var,
                                                        Distance distance, Moment moment);
std::tuple<at::Tensor, at::Tensor> bn_match_forward_cuda(const at::Tensor& x, const ChannelLayout& layout,
                                                         const at::Tensor& mean, const at::Tensor& var,
                                                         Distance distance, Moment moment);
at::Tensor bn_match_backward_cpu(const at::Tensor& grad, const at::Tensor& x, const ChannelLayout& layout,
                                 const at::Tensor& coefficients);
at::Tensor bn_match_backward_cuda(const at::Tensor& grad, const at::Tensor& x, const ChannelLayout& layout,
                                  const at::Tensor& coefficients);

}  // namespace exml
