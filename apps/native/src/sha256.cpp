#include "sha256.h"

#include <array>
#include <cmath>

namespace tinyvit {
namespace {

constexpr int kRounds = 64;
constexpr std::size_t kBlock = 64;  // bytes

std::uint32_t rotate(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

/// The first 32 bits behind the point of a root of each of the first 64 primes: the standard's
/// constants (cube roots), and of the first eight its initial state (square roots).
std::array<std::uint32_t, kRounds> roots(double (*root)(double)) {
  std::array<std::uint32_t, kRounds> found{};
  std::size_t count = 0;
  for (int candidate = 2; count < found.size(); ++candidate) {
    bool prime = true;
    for (int d = 2; d * d <= candidate; ++d) prime = prime && candidate % d != 0;
    if (!prime) continue;
    const double value = root(candidate);
    found[count++] = static_cast<std::uint32_t>((value - std::floor(value)) * 4294967296.0);
  }
  return found;
}

void absorb(std::array<std::uint32_t, 8>& state, const std::uint8_t* block) {
  static const auto constants = roots([](double x) { return std::cbrt(x); });
  std::array<std::uint32_t, kRounds> w{};
  for (std::size_t i = 0; i < kBlock; ++i) w[i / 4] = w[i / 4] << 8 | block[i];
  for (std::size_t i = 16; i < kRounds; ++i) {
    const auto s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    const auto s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (std::size_t i = 0; i < kRounds; ++i) {
    const auto s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const auto t1 = h + s1 + ((e & f) ^ (~e & g)) + constants[i] + w[i];
    const auto s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const auto t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<std::uint32_t, 8> mixed{a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < state.size(); ++i) state[i] += mixed[i];
}

}  // namespace

std::string sha256(std::vector<std::uint8_t> bytes) {
  const std::uint64_t bits = std::uint64_t{8} * bytes.size();
  bytes.push_back(0x80);
  while (bytes.size() % kBlock != kBlock - 8) bytes.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<std::uint8_t>(bits >> shift));
  }
  const auto initial = roots([](double x) { return std::sqrt(x); });
  std::array<std::uint32_t, 8> state{};
  for (std::size_t i = 0; i < state.size(); ++i) state[i] = initial[i];
  for (std::size_t at = 0; at < bytes.size(); at += kBlock) absorb(state, &bytes[at]);
  std::string hex;
  for (std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

}  // namespace tinyvit
