#include "ops/match_statistics.h"

#include <ATen/ops/split_with_sizes.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Weights = std::optional<at::ArrayRef<double>>;

std::tuple<Tensor, Tensor> forward_op(TensorList means, TensorList variances, TensorList target_means,
                                      TensorList target_variances, Weights weights, std::string_view distance,
                                      std::string_view moment) {
  static const auto op = find_op<decltype(forward_op)>("exml::_match_statistics_forward");
  return op.call(means, variances, target_means, target_variances, weights, distance, moment);
}

Tensor backward_op(const Tensor& grad, TensorList means, TensorList variances, TensorList target_means,
                   TensorList target_variances, const Tensor& sums, Weights weights, std::string_view distance,
                   std::string_view moment) {
  static const auto op = find_op<decltype(backward_op)>("exml::_match_statistics_backward");
  return op.call(grad, means, variances, target_means, target_variances, sums, weights, distance, moment);
}

struct MatchStatistics : torch::autograd::Function<MatchStatistics> {
  static Tensor forward(AutogradContext* ctx, const TensorList& means, const TensorList& variances,
                        const TensorList& target_means, const TensorList& target_variances, const Weights& weights,
                        std::string_view distance, std::string_view moment) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, sums] = forward_op(means, variances, target_means, target_variances, weights, distance, moment);
    variable_list saved;
    for (const auto& list : {means, variances, target_means, target_variances})
      saved.insert(saved.end(), list.begin(), list.end());
    saved.push_back(sums);
    ctx->save_for_backward(std::move(saved));
    if (weights) ctx->saved_data["weights"] = weights->vec();
    ctx->saved_data["distance"] = std::string(distance);
    ctx->saved_data["moment"] = std::string(moment);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const size_t layers = saved.size() / 4;
    const auto list = [&](int i) { return TensorList(saved).slice(i * layers, layers); };
    const auto& data = ctx->saved_data;
    const auto weights = data.count("weights") ? data.at("weights").toDoubleVector() : std::vector<double>();
    const Tensor gradient = backward_op(grads[0], list(0), list(1), list(2), list(3), saved.back(),
                                        data.count("weights") ? Weights(weights) : Weights(),
                                        data.at("distance").toStringRef(), data.at("moment").toStringRef());
    std::vector<int64_t> channels;
    for (const Tensor& mean : list(0)) channels.push_back(mean.size(0));
    variable_list results;
    for (const int64_t row : {0, 1})
      for (auto& part : gradient.select(0, row).split_with_sizes(channels)) results.push_back(std::move(part));
    results.resize(4 * layers + 3);
    return results;
  }
};

Tensor match_statistics_autograd(TensorList means, TensorList variances, TensorList target_means,
                                 TensorList target_variances, Weights weights, std::string_view distance,
                                 std::string_view moment) {
  for (const Tensor& t : target_means) check_no_grad("match_statistics", "target_means", t);
  for (const Tensor& t : target_variances) check_no_grad("match_statistics", "target_variances", t);
  return MatchStatistics::apply(means, variances, target_means, target_variances, weights, distance, moment);
}

Tensor match_statistics_without_autograd(TensorList means, TensorList variances, TensorList target_means,
                                         TensorList target_variances, Weights weights, std::string_view distance,
                                         std::string_view moment) {
  return std::get<0>(forward_op(means, variances, target_means, target_variances, weights, distance, moment));
}

Tensor backward_autograd(const Tensor& grad, TensorList means, TensorList variances, TensorList target_means,
                         TensorList target_variances, const Tensor& sums, Weights weights, std::string_view distance,
                         std::string_view moment) {
  Tensor result = below_autograd([&] {
    return backward_op(grad, means, variances, target_means, target_variances, sums, weights, distance, moment);
  });
  variable_list inputs{grad};
  for (const auto& list : {means, variances}) inputs.insert(inputs.end(), list.begin(), list.end());
  return OnceDifferentiable::apply(TensorList(inputs), variable_list{result}, "match_statistics")[0];
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("match_statistics", &match_statistics_without_autograd);
}

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("match_statistics", &match_statistics_autograd);
  m.impl("_match_statistics_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
