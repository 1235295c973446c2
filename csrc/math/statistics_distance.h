// The distance between a batch's channel statistics and given ones, and its gradient with respect to a pixel.
#pragma once

#include "math/platform.h"

namespace exml {

enum class Distance { l2, squared, gaussian_kl };
enum class Moment { var, std };

template <typename A>
struct ChannelStatistics {
  A mean, var;
};

// The terms that one channel adds to the two sums from which the loss is formed.
template <typename A>
struct DistanceSums {
  A mean = 0, moment = 0;
};

template <typename A>
EXML_HD A second_moment(Moment moment, A var) {
  return moment == Moment::std ? std::sqrt(var) : var;
}

template <typename A>
EXML_HD DistanceSums<A> channel_distance(Distance distance, Moment moment, ChannelStatistics<A> batch,
                                         ChannelStatistics<A> given) {
  const A d_mean = batch.mean - given.mean;
  if (distance == Distance::gaussian_kl) {
    const A ratio = batch.var / given.var;
    return {d_mean * d_mean / given.var / 2, (ratio - 1 - std::log(ratio)) / 2};
  }
  const A d_moment = second_moment(moment, batch.var) - second_moment(moment, given.var);
  return {d_mean * d_mean, d_moment * d_moment};
}

template <typename A>
EXML_HD A distance_loss(Distance distance, DistanceSums<A> sums) {
  return distance == Distance::l2 ? std::sqrt(sums.mean) + std::sqrt(sums.moment) : sums.mean + sums.moment;
}

// d loss / d mean and d loss / d var of one channel of the batch.
template <typename A>
EXML_HD ChannelStatistics<A> statistics_gradient(Distance distance, Moment moment, ChannelStatistics<A> batch,
                                                 ChannelStatistics<A> given, DistanceSums<A> sums) {
  A d_mean = batch.mean - given.mean, d_var;
  if (distance == Distance::gaussian_kl) {
    d_mean /= given.var;
    d_var = (A(1) / given.var - A(1) / batch.var) / 2;
  } else {
    d_var = second_moment(moment, batch.var) - second_moment(moment, given.var);
    // d sqrt(v) / d v. It is taken as 0 for a constant channel, whose deviation grows in all directions alike.
    if (moment == Moment::std) d_var *= batch.var == A(0) ? A(0) : A(1) / (2 * std::sqrt(batch.var));
    if (distance == Distance::l2) {  // a norm's gradient at zero is zero
      d_mean = sums.mean == A(0) ? A(0) : d_mean / std::sqrt(sums.mean);
      d_var = sums.moment == A(0) ? A(0) : d_var / std::sqrt(sums.moment);
    } else {
      d_mean *= 2;
      d_var *= 2;
    }
  }
  return {d_mean, d_var};
}

// d loss / d x = offset + slope * (x - mean) for every x of the channel.
template <typename A>
struct PixelGradient {
  A offset, slope, mean;
};

template <typename A>
EXML_HD PixelGradient<A> pixel_gradient(Distance distance, Moment moment, ChannelStatistics<A> batch,
                                        ChannelStatistics<A> given, DistanceSums<A> sums, A count) {
  const auto d = statistics_gradient(distance, moment, batch, given, sums);
  return {d.mean / count, 2 * d.var / count, batch.mean};
}

}  // namespace exml
