// Philox4x32-10 (Salmon et al., 2011): random numbers as a function of (seed, sequence, counter). Every element of a
// tensor draws from a stream of its own, so that the number of threads does not change the draws.
#pragma once

#include "math/platform.h"

namespace exml {

class Philox {
 public:
  EXML_HD Philox(uint64_t seed, uint64_t sequence, uint64_t offset)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        counter_{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32), static_cast<uint32_t>(sequence),
                 static_cast<uint32_t>(sequence >> 32)} {}

  // Two uniforms in (0, 1), 53 bits each; advances the counter by one.
  EXML_HD void uniform2(double& a, double& b) {
    uint32_t r[4];
    block(r);
    a = to_unit(r[0], r[1]);
    b = to_unit(r[2], r[3]);
    if (++counter_[0] == 0) ++counter_[1];
  }

 private:
  EXML_HD static double to_unit(uint32_t low, uint32_t high) {
    const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 12;  // 52 bits, then the middle of the cell
    return (static_cast<double>(bits) + 0.5) * 0x1p-52;
  }

  EXML_HD void block(uint32_t r[4]) const {
    uint32_t k0 = key_[0], k1 = key_[1];
    for (int i = 0; i < 4; ++i) r[i] = counter_[i];
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t(0xD2511F53) * r[0], p1 = uint64_t(0xCD9E8D57) * r[2];
      const uint32_t r1 = r[1], r3 = r[3];
      r[0] = static_cast<uint32_t>(p1 >> 32) ^ r1 ^ k0;
      r[1] = static_cast<uint32_t>(p1);
      r[2] = static_cast<uint32_t>(p0 >> 32) ^ r3 ^ k1;
      r[3] = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
  }

  uint32_t key_[2], counter_[4];
};

}  // namespace exml
