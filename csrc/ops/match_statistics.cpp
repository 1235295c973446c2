#include "ops/match_statistics.h"

#include <string>

#include "ops/bn_match.h"
#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

void check_length(const char* name, size_t length, size_t layers) {
  EXML_CHECK_VALUE(length == layers, "match_statistics: ", name, " must have one entry for each of the ", layers,
                   " means, got ", length);
}

void check_statistic(const char* list, size_t i, const Tensor& t, const Tensor& mean) {
  EXML_CHECK_VALUE(equal(t.sizes(), mean.sizes()), "match_statistics: ", list, "[", i, "] must have the shape ",
                   mean.sizes(), " of means[", i, "], got ", t.sizes());
  EXML_CHECK_VALUE(is_floating_point(t), "match_statistics: ", list, "[", i, "] must be floating point, got ",
                   t.scalar_type());
}

void check_same_dtype(const char* list, size_t i, const Tensor& t, const Tensor& anchor) {
  EXML_CHECK_VALUE(t.scalar_type() == anchor.scalar_type(), "match_statistics: ", list, "[", i,
                   "] must have the dtype of means[0], ", anchor.scalar_type(), ", got ", t.scalar_type());
}

void check(TensorList means, TensorList variances, TensorList target_means, TensorList target_variances,
           const LayerWeights& weights) {
  EXML_CHECK_VALUE(!means.empty(), "match_statistics: means must hold at least one layer, got none");
  check_length("variances", variances.size(), means.size());
  check_length("target_means", target_means.size(), means.size());
  check_length("target_variances", target_variances.size(), means.size());
  if (weights) check_length("weights", weights->size(), means.size());
  const Tensor& first = means[0];
  EXML_CHECK_VALUE(first.scalar_type() == ScalarType::Float || first.scalar_type() == ScalarType::Double,
                   "match_statistics: means must be float32 or float64, got ", first.scalar_type());
  const std::pair<const char*, TensorList> lists[] = {{"means", means},
                                                      {"variances", variances},
                                                      {"target_means", target_means},
                                                      {"target_variances", target_variances}};
  for (size_t i = 0; i < means.size(); ++i) {
    EXML_CHECK_VALUE(means[i].dim() == 1 && means[i].size(0) > 0, "match_statistics: means[", i,
                     "] must have shape (C,) and not be empty, got ", means[i].sizes());
    for (const auto& [name, list] : lists) {
      check_statistic(name, i, list[i], means[i]);
      if (list[i].device() != first.device())
        check_device("match_statistics", (std::string(name) + "[" + std::to_string(i) + "]").c_str(), list[i],
                     "means[0]", first);
    }
    check_same_dtype("means", i, means[i], first);
    check_same_dtype("variances", i, variances[i], first);
  }
}

std::vector<MatchedLayer> layers_of(TensorList means, TensorList variances, TensorList target_means,
                                    TensorList target_variances, const LayerWeights& weights) {
  const auto dtype = means[0].scalar_type();
  std::vector<MatchedLayer> layers;
  layers.reserve(means.size());
  for (size_t i = 0; i < means.size(); ++i)
    layers.push_back({as_contiguous(means[i]), as_contiguous(variances[i]),
                      as_contiguous(as_type(target_means[i], dtype)),
                      as_contiguous(as_type(target_variances[i], dtype)), weights ? (*weights)[i] : 1.0});
  return layers;
}

}  // namespace

MatchStatistics match_statistics_arguments(TensorList means, TensorList variances, TensorList target_means,
                                           TensorList target_variances, LayerWeights weights, std::string_view distance,
                                           std::string_view moment) {
  check(means, variances, target_means, target_variances, weights);
  return {layers_of(means, variances, target_means, target_variances, weights),
          distance_from("match_statistics", distance), moment_from("match_statistics", moment)};
}

MatchStatisticsBackward match_statistics_backward_arguments(const Tensor& grad, TensorList means, TensorList variances,
                                                            TensorList target_means, TensorList target_variances,
                                                            const Tensor& sums, LayerWeights weights,
                                                            std::string_view distance, std::string_view moment) {
  check(means, variances, target_means, target_variances, weights);
  const MatchStatistics op{layers_of(means, variances, target_means, target_variances, weights),
                           distance_from("match_statistics", distance), moment_from("match_statistics", moment)};
  const int64_t layers = static_cast<int64_t>(means.size());
  return {checked_saved("match_statistics", "grad", grad, {}, means[0].scalar_type(), means[0]), op,
          checked_saved("match_statistics", "sums", sums, {layers, 2}, ScalarType::Double, means[0])};
}

EXML_SCHEMAS(m) {
  m.def(
      "_match_statistics_forward(Tensor[] means, Tensor[] variances, Tensor[] target_means, Tensor[] "
      "target_variances, float[]? weights, str distance, str moment) -> (Tensor loss, Tensor sums)");
  m.def(
      "_match_statistics_backward(Tensor grad, Tensor[] means, Tensor[] variances, Tensor[] target_means, Tensor[] "
      "target_variances, Tensor sums, float[]? weights, str distance, str moment) -> Tensor");
}

}  // namespace exml
