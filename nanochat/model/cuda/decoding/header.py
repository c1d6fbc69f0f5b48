"""C++ that the decoding kernels share: vectors of eight values, and small products on the tensor cores.

`Products` holds 16 * TALL outputs of 8 * WIDE rows. A warp loads weights and inputs as eight neighbours along K per
lane: lane 4 g + t has elements 8 t to 8 t + 7 of outputs and rows g, g + 8, ... Which four of them the tensor cores
take for one product does not matter as long as weights and inputs agree. Float32 has no such products, so there the
lanes exchange inputs and add up plainly, which is exact enough to be compared with the reference.
"""

HEADER = """
namespace nanochat {
template <typename T>
struct Eight;  // eight elements as they are stored
template <>
struct Eight<bf16> {
  uint4 raw;
  __device__ void load(const bf16* from, bool there) {  // from any kind of memory
    raw = there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  }
  __device__ void store(bf16* to) const { *reinterpret_cast<uint4*>(to) = raw; }
  __device__ void unpack(float* to) const {
    nanochat::unpack(raw.x, to);
    nanochat::unpack(raw.y, to + 2);
    nanochat::unpack(raw.z, to + 4);
    nanochat::unpack(raw.w, to + 6);
  }
};
template <>
struct Eight<float> {
  float values[8];
  __device__ void load(const float* from, bool there) {
    for (int e = 0; e < 8; ++e) values[e] = there ? from[e] : 0.f;
  }
  __device__ void store(float* to) const { nanochat::store(to, values); }
  __device__ void unpack(float* to) const {
    for (int e = 0; e < 8; ++e) to[e] = values[e];
  }
};
template <typename T, int TALL, int WIDE>
struct Products;
template <int TALL, int WIDE>
struct Products<bf16, TALL, WIDE> {
  float sums[TALL][WIDE][4] = {};
  __device__ static void multiply(float* c, uint2 low, uint2 high, uint2 in) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(in.x), "r"(in.y));
  }
  __device__ void add(const Eight<bf16>* w, const Eight<bf16>* x) {
#pragma unroll
    for (int i = 0; i < TALL; ++i) {
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        const uint4 low = w[2 * i].raw, high = w[2 * i + 1].raw, in = x[j].raw;
        multiply(sums[i][j], {low.x, low.y}, {high.x, high.y}, {in.x, in.y});
        multiply(sums[i][j], {low.z, low.w}, {high.z, high.w}, {in.z, in.w});
      }
    }
  }
  __device__ void store(float* to, int stride, int g, int t) const {
#pragma unroll
    for (int i = 0; i < TALL; ++i) {
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        float* at = to + (j * 8 + 2 * t) * stride + i * 16 + g;
        at[0] = sums[i][j][0];
        at[stride] = sums[i][j][1];
        at[8] = sums[i][j][2];
        at[stride + 8] = sums[i][j][3];
      }
    }
  }
};
template <int TALL, int WIDE>
struct Products<float, TALL, WIDE> {
  float sums[2 * TALL][8 * WIDE] = {};
  __device__ void add(const Eight<float>* w, const Eight<float>* x) {
#pragma unroll
    for (int j = 0; j < 8 * WIDE; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float in = __shfl_sync(0xffffffffu, x[j / 8].values[e], j % 8 * 4 + threadIdx.x % 4);
#pragma unroll
        for (int i = 0; i < 2 * TALL; ++i) sums[i][j] += w[i].values[e] * in;
      }
    }
  }
  __device__ void store(float* to, int stride, int g, int t) const {
#pragma unroll
    for (int i = 0; i < 2 * TALL; ++i) {
#pragma unroll
      for (int j = 0; j < 8 * WIDE; ++j) {
        const float sum = sum_over_lanes<4>(sums[i][j]);
        if (t == 0) to[j * stride + i * 8 + g] = sum;
      }
    }
  }
};
}  // namespace nanochat
"""
