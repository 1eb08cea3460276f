// The operators of ecanet/attention/operators.py for CPUs; cpu_kernels.py compiles, loads and calls them.
//
// An image is (H*W, C) if channels are last and (C, H*W) otherwise; T is float or bf16, all arithmetic is in float.
// Work is divided into images and, where there are fewer images than threads, into parts of them, such that no
// sum depends on the number of threads. There is no header of torch here, so that this compiles in a second.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Inlined, counts are constants.
#define INLINE __attribute__((always_inline)) inline

namespace {

typedef int64_t Size;

// ---- vectors of 16 values, which compilers map to whatever the processor has

const int LANES = 16;
typedef float Values __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 { uint16_t bits; };

template <typename To, typename From> inline To as(From value) {
  To result;
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  memcpy(&result, &value, sizeof(To));
  return result;
}

inline Values all(float value) { return value - Values{}; }
// b where the mask holds, else a.
inline Values select(Mask mask, Values a, Values b) {
  return as<Values>((as<Mask>(a) & ~mask) | (as<Mask>(b) & mask));
}

inline Values load(const float* at) {
  Values values;
  memcpy(&values, at, sizeof(values));
  return values;
}
inline Values load(const bf16* at) {
  Halves halves;
  memcpy(&halves, at, sizeof(halves));
  return as<Values>(__builtin_convertvector(halves, Bits) << 16);
}
inline void store(float* at, Values values) { memcpy(at, &values, sizeof(values)); }
inline void store(bf16* at, Values values) {
  Bits bits = as<Bits>(values);
  Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
  bits = as<Bits>(select(values != values, as<Values>(rounded), as<Values>(bits | 0x400000)));
  Halves halves = __builtin_convertvector(bits >> 16, Halves);
  memcpy(at, &halves, sizeof(halves));
}
// The first count values; the other lanes are zero.
template <typename T> inline Values load(const T* at, Size count) {
  if (count >= LANES) return load(at);
  T padded[LANES] = {};
  memcpy(padded, at, count * sizeof(T));
  return load(padded);
}
template <typename T> inline void store(T* at, Values values, Size count) {
  if (count >= LANES) return store(at, values);
  T padded[LANES];
  store(padded, values);
  memcpy(at, padded, count * sizeof(T));
}
inline float total(Values values) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += values[i];
  return sum;
}
inline Mask first(Size count) {
  Mask mask;
  for (int i = 0; i < LANES; i++) mask[i] = i < count ? -1 : 0;
  return mask;
}

// exp to about one unit in the last place; NaN stays NaN.
inline Values exponential(Values x) {
  x = select(x > all(88.0f), x, all(88.0f));
  x = select(x < all(-87.0f), x, all(-87.0f));
  Values rounded = x * all(1.44269504f) + all(12582912.0f);  // 1.5 * 2^23: the integer is in the low bits
  Bits exponent = (as<Bits>(rounded) + 127) << 23;
  rounded -= all(12582912.0f);
  x = x - rounded * all(0.693359375f) + rounded * all(2.12194440e-4f);
  Values y = all(1.9875691500e-4f);
  y = y * x + all(1.3981999507e-3f);
  y = y * x + all(8.3334519073e-3f);
  y = y * x + all(4.1665795894e-2f);
  y = y * x + all(1.6666665459e-1f);
  y = y * x + all(5.0000001201e-1f);
  return (y * x * x + x + all(1.0f)) * as<Values>(exponent);
}
inline Values sigmoid(Values x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }

// ---- an image, and how the work is divided

struct Shape {
  Size images, channels, pixels;
  bool last;  // channels last
  int threads;

  Size values() const { return channels * pixels; }
  Size all_values() const { return images * values(); }
  // torch starts threads for this many values, too.
  int used() const { return all_values() < 32768 ? 1 : threads; }
  // Parts of an image into which a task that can be cut `most` times is cut.
  Size parts(Size most) const {
    Size parts = (used() + images - 1) / images;
    return parts < 1 ? 1 : parts > most ? (most < 1 ? 1 : most) : parts;
  }
  // Columns of 16 channels, of which a thread takes pairs: whole cache lines also in bfloat16.
  Size columns() const { return (channels + LANES - 1) / LANES; }
  Size channel_parts() const { return parts((columns() + 1) / 2); }
};

struct Range { Size begin, end; };

inline Range part_of(Size count, Size part, Size parts, Size multiple) {
  Size units = (count + multiple - 1) / multiple;
  Size begin = units * part / parts * multiple, end = units * (part + 1) / parts * multiple;
  return {begin, end < count ? end : count};
}

// A norm with given statistics; one without vectors (null) is the identity.
struct Norm {
  const float *weight, *bias, *center, *spread;
  float eps;
  float* gains;

  Norm(const float* weight, const float* bias, const float* center, const float* spread, float eps, Size channels)
      : weight(weight), bias(bias), center(center), spread(spread), eps(eps), gains(nullptr) {
    if (!weight) return;
    gains = (float*)malloc(channels * sizeof(float));
    for (Size c = 0; c < channels; c++) gains[c] = weight[c] / sqrtf(spread[c] + eps);
  }
  Norm(const Norm&) = delete;
  ~Norm() { free(gains); }

  Values gain(Size c, Size count) const { return load(gains + c, count); }
};

// ---- one image, or some of its channels

const Size CHUNK = 64;  // pixels that are summed before they are added to the total, for precision

// Adds sums of pixels to those of COLUMNS * 16 channels: plain, or of differences from the first pixel and of their
// squares. The sums of PIXELS neighbors do not wait for each other.
template <int COLUMNS, int PIXELS, bool VARIANCE, typename T>
INLINE void add_pixels(const T* x, Range pixels, Size stride, Size count, float* sums, float* squares) {
  Values origin[COLUMNS], sum[PIXELS][COLUMNS] = {}, square[PIXELS][COLUMNS] = {};
  for (int i = 0; i < COLUMNS; i++) origin[i] = VARIANCE ? load(x + i * LANES, count - i * LANES) : Values{};
  Size whole = pixels.begin + (pixels.end - pixels.begin) / PIXELS * PIXELS;
  for (Size p = pixels.begin; p < whole; p += PIXELS)
    for (int j = 0; j < PIXELS; j++)
      for (int i = 0; i < COLUMNS; i++) {
        Values value = load(x + (p + j) * stride + i * LANES, count - i * LANES) - origin[i];
        sum[j][i] += value;
        if (VARIANCE) square[j][i] += value * value;
      }
  for (Size p = whole; p < pixels.end; p++)
    for (int i = 0; i < COLUMNS; i++) {
      Values value = load(x + p * stride + i * LANES, count - i * LANES) - origin[i];
      sum[0][i] += value;
      if (VARIANCE) square[0][i] += value * value;
    }
  for (int i = 0; i < COLUMNS; i++) {
    Values total = load(sums + i * LANES, count - i * LANES);
    for (int j = 0; j < PIXELS; j++) total += sum[j][i];
    store(sums + i * LANES, total, count - i * LANES);
    if (VARIANCE) {
      total = load(squares + i * LANES, count - i * LANES);
      for (int j = 0; j < PIXELS; j++) total += square[j][i];
      store(squares + i * LANES, total, count - i * LANES);
    }
  }
}

// Means and biased variances of a range of channels. Variances keep their precision as sums of differences from the
// first pixel.
template <bool VARIANCE, typename T>
void moments_of(const T* x, const Shape& s, Range c, float* mean, float* variance) {
  if (s.last) {
    for (Size i = c.begin; i < c.end; i++) mean[i] = 0;
    for (Size i = c.begin; VARIANCE && i < c.end; i++) variance[i] = 0;
    // Chunk by chunk, so that memory is read in its order.
    for (Size begin = 0; begin < s.pixels; begin += CHUNK) {
      Range pixels = {begin, begin + CHUNK < s.pixels ? begin + CHUNK : s.pixels};
      for (Size i = c.begin; i < c.end;) {
        Size left = c.end - i;
        float* squares = VARIANCE ? variance + i : nullptr;
        if (left >= 4 * LANES) {  // with counts that are known
          add_pixels<4, 1, VARIANCE>(x + i, pixels, s.channels, 4 * LANES, mean + i, squares);
          i += 4 * LANES;
        } else if (left >= LANES) {
          add_pixels<1, 4, VARIANCE>(x + i, pixels, s.channels, LANES, mean + i, squares);
          i += LANES;
        } else {
          add_pixels<1, 1, VARIANCE>(x + i, pixels, s.channels, left, mean + i, squares);
          i += LANES;
        }
      }
    }
    for (Size i = c.begin; i < c.end; i += LANES) {
      Size count = c.end - i;
      Values offset = load(mean + i, count) / all(s.pixels);
      store(mean + i, VARIANCE ? load(x + i, count) + offset : offset, count);
      if (VARIANCE) {
        Values spread = load(variance + i, count) / all(s.pixels) - offset * offset;
        store(variance + i, select(spread < all(0), spread, all(0)), count);
      }
    }
    return;
  }
  for (Size i = c.begin; i < c.end; i++) {
    const T* row = x + i * s.pixels;
    T one[LANES] = {row[0]};
    Values origin = all(VARIANCE ? load(one)[0] : 0), sums = {}, squares = {};
    for (Size p = 0; p < s.pixels; p += LANES) {
      Values value = load(row + p, s.pixels - p) - origin;
      if (s.pixels - p < LANES) value = select(first(s.pixels - p), Values{}, value);
      sums += value;
      if (VARIANCE) squares += value * value;
    }
    float offset = total(sums) / s.pixels;
    mean[i] = origin[0] + offset;
    if (VARIANCE) {
      float spread = total(squares) / s.pixels - offset * offset;
      variance[i] = spread < 0 ? 0 : spread;
    }
  }
}

// out = relu((x - center) * scale + shift + shortcut) for a range of pixels (channels last) or channels.
template <bool SHORTCUT, bool RELU, typename T>
void apply_to(const T* x, const T* shortcut, const Shape& s, Range range, const float* center, const float* scale,
              const float* shift, T* out) {
  Size inner = s.last ? s.channels : s.pixels;
  for (Size row = range.begin; row < range.end; row++)
    for (Size i = 0; i < inner; i += LANES) {
      Size at = row * inner + i, count = inner - i;
      Values value = load(x + at, count);
      if (s.last)
        value = (value - load(center + i, count)) * load(scale + i, count) + load(shift + i, count);
      else
        value = (value - all(center[row])) * all(scale[row]) + all(shift[row]);
      if (SHORTCUT) value += load(shortcut + at, count);
      if (RELU) value = select(value <= all(0), value, all(0));  // not a maximum: NaN stays NaN
      store(out + at, value, count);
    }
}

template <typename T>
void apply(const T* x, const T* shortcut, const Shape& s, Range range, const float* center, const float* scale,
           const float* shift, bool relu, T* out) {
  if (shortcut && relu) apply_to<true, true>(x, shortcut, s, range, center, scale, shift, out);
  else if (shortcut) apply_to<true, false>(x, shortcut, s, range, center, scale, shift, out);
  else if (relu) apply_to<false, true>(x, shortcut, s, range, center, scale, shift, out);
  else apply_to<false, false>(x, shortcut, s, range, center, scale, shift, out);
}

// What the ReLU lets through of the gradient, and its sums, plain and times x - center.
template <bool RELU, typename T>
inline Values pass(const T* grad, const T* out, T* passed, Size at, Size count) {
  Values value = load(grad + at, count);
  if (RELU) {
    value = select(load(out + at, count) <= all(0), value, all(0));
    store(passed + at, value, count);
  }
  return value;
}

template <int COLUMNS, bool RELU, typename T>
INLINE void sums_of_columns(const T* grad, const T* out, const T* x, Size pixels, Size stride, Size count,
                     const float* center, T* passed, float* of_shift, float* of_scale) {
  Values origin[COLUMNS], shifts[COLUMNS] = {}, scales[COLUMNS] = {};
  for (int i = 0; i < COLUMNS; i++) origin[i] = center ? load(center + i * LANES, count - i * LANES) : Values{};
  for (Size begin = 0; begin < pixels; begin += CHUNK) {
    Size end = begin + CHUNK < pixels ? begin + CHUNK : pixels;
    Values shift[COLUMNS] = {}, scale[COLUMNS] = {};
    for (Size p = begin; p < end; p++)
      for (int i = 0; i < COLUMNS; i++) {
        Size at = p * stride + i * LANES;
        Values value = pass<RELU>(grad, out, passed, at, count - i * LANES);
        shift[i] += value;
        scale[i] += value * (load(x + at, count - i * LANES) - origin[i]);
      }
    for (int i = 0; i < COLUMNS; i++) shifts[i] += shift[i], scales[i] += scale[i];
  }
  for (int i = 0; i < COLUMNS; i++) {
    store(of_shift + i * LANES, shifts[i], count - i * LANES);
    store(of_scale + i * LANES, scales[i], count - i * LANES);
  }
}

// center may be null, for zero.
template <bool RELU, typename T>
void sums_of(const T* grad, const T* out, const T* x, const Shape& s, Range c, const float* center, T* passed,
             float* of_shift, float* of_scale) {
  if (s.last) {
    for (Size i = c.begin; i < c.end;) {
      const float* origin = center ? center + i : nullptr;
      if (c.end - i >= 2 * LANES) {
        sums_of_columns<2, RELU>(grad + i, out + i, x + i, s.pixels, s.channels, 2 * LANES, origin, passed + i,
                                 of_shift + i, of_scale + i);
        i += 2 * LANES;
      } else {
        Size count = c.end - i >= LANES ? LANES : c.end - i;
        sums_of_columns<1, RELU>(grad + i, out + i, x + i, s.pixels, s.channels, count, origin, passed + i,
                                 of_shift + i, of_scale + i);
        i += LANES;
      }
    }
    return;
  }
  for (Size i = c.begin; i < c.end; i++) {
    Values origin = all(center ? center[i] : 0), shift = {}, scale = {};
    for (Size p = 0; p < s.pixels; p += LANES) {
      Size at = i * s.pixels + p, count = s.pixels - p;
      Values value = pass<RELU>(grad, out, passed, at, count);  // zero beyond the row
      shift += value;
      scale += value * (load(x + at, count) - origin);
    }
    of_shift[i] = total(shift), of_scale[i] = total(scale);
  }
}

// grad_x = passed * a + (x - mean) * d + b; d may be null, for zero.
template <bool OF_X, typename T>
void gradient_of(const T* passed, const T* x, const Shape& s, Range range, const float* mean, const float* a,
                 const float* b, const float* d, T* grad_x) {
  Size inner = s.last ? s.channels : s.pixels;
  for (Size row = range.begin; row < range.end; row++)
    for (Size i = 0; i < inner; i += LANES) {
      Size at = row * inner + i, count = inner - i;
      Values value = load(passed + at, count);
      if (s.last) {
        value = value * load(a + i, count) + load(b + i, count);
        if (OF_X) value += (load(x + at, count) - load(mean + i, count)) * load(d + i, count);
      } else {
        value = value * all(a[row]) + all(b[row]);
        if (OF_X) value += (load(x + at, count) - all(mean[row])) * all(d[row]);
      }
      store(grad_x + at, value, count);
    }
}

// A row of means after the norm from one before it.
void normalize(const float* mean, Size channels, const Norm& norm, float* pooled) {
  for (Size c = 0; c < channels; c += LANES) {
    Size count = channels - c;
    Values offset = load(mean + c, count) - load(norm.center + c, count);
    store(pooled + c, offset * norm.gain(c, count) + load(norm.bias + c, count), count);
  }
}

// ---- the gate of ECA, one image

// The sigmoid of the convolution of a row of means; padded has room for channels + 2 * (k / 2) + 16 values.
void gate_of(const float* pooled, Size channels, const float* kernel, Size k, float* padded, float* gate) {
  memset(padded, 0, (channels + 2 * (k / 2) + LANES) * sizeof(float));
  memcpy(padded + k / 2, pooled, channels * sizeof(float));
  for (Size c = 0; c < channels; c += LANES) {
    Values logit = {};
    for (Size i = 0; i < k; i++) logit += load(padded + c + i) * all(kernel[i]);
    store(gate + c, sigmoid(logit), channels - c);
  }
}

// The gradients of the means, and of the kernel, to which it is added.
void gate_gradient_of(const float* grad_gate, const float* gate, const float* pooled, Size channels,
                      const float* kernel, Size k, float* padded, float* grad_pooled, double* grad_kernel) {
  Size half = k / 2;
  memset(padded, 0, (channels + 2 * half + LANES) * sizeof(float));
  for (Size c = 0; c < channels; c++) padded[half + c] = grad_gate[c] * gate[c] * (1 - gate[c]);
  for (Size c = 0; c < channels; c += LANES) {
    Values grad = {};
    // The logit to which this channel's mean contributes with weight i is c - i + half.
    for (Size i = 0; i < k; i++) grad += load(padded + c + k - 1 - i) * all(kernel[i]);
    store(grad_pooled + c, grad, channels - c);
  }
  for (Size i = 0; i < k; i++) {
    Size begin = half - i > 0 ? half - i : 0, end = channels + half - i < channels ? channels + half - i : channels;
    float sum = 0;
    for (Size c = begin; c < end; c++) sum += padded[half + c] * pooled[c + i - half];
    grad_kernel[i] += sum;
  }
}

Size padded_size(Size channels, Size k) { return channels + 2 * (k / 2) + LANES; }

// ---- the operators

template <typename T>
void image_moments(const T* x, Shape s, float* mean, float* variance) {
  Size parts = s.last ? s.channel_parts() : s.parts(s.channels), unit = s.last ? 2 * LANES : 1;
#pragma omp parallel for num_threads(s.used())
  for (Size task = 0; task < s.images * parts; task++) {
    Size n = task / parts, at = n * s.channels;
    Range c = part_of(s.channels, task % parts, parts, unit);
    if (variance) moments_of<true>(x + n * s.values(), s, c, mean + at, variance + at);
    else moments_of<false>(x + n * s.values(), s, c, mean + at, (float*)nullptr);
  }
}

template <typename T>
void gate_add(const T* x, const float* gate, const T* shortcut, const Shape& s, const Norm& norm, bool relu, T* out) {
  Size rows = s.last ? s.pixels : s.channels, parts = s.parts(rows);
#pragma omp parallel num_threads(s.used())
  {
    float* scale = (float*)malloc(2 * s.channels * sizeof(float));
    float* shift = scale + s.channels;
#pragma omp for
    for (Size task = 0; task < s.images * parts; task++) {
      Size n = task / parts, at = n * s.values();
      for (Size c = 0; c < s.channels; c += LANES) {
        Size count = s.channels - c;
        Values factor = gate ? load(gate + n * s.channels + c, count) : all(1);
        store(scale + c, norm.gain(c, count) * factor, count);
        store(shift + c, load(norm.bias + c, count) * factor, count);
      }
      apply(x + at, shortcut ? shortcut + at : nullptr, s, part_of(rows, task % parts, parts, 1), norm.center,
            scale, shift, relu, out + at);
    }
    free(scale);
  }
}

template <typename T>
void gate_add_backward(const T* grad, const T* out, const T* x, Shape s, const float* center, T* passed,
                       float* of_shift, float* of_scale) {
  Size parts = s.last ? s.channel_parts() : s.parts(s.channels), unit = s.last ? 2 * LANES : 1;
#pragma omp parallel for num_threads(s.used())
  for (Size task = 0; task < s.images * parts; task++) {
    Size n = task / parts, at = n * s.values(), vector = n * s.channels;
    Range c = part_of(s.channels, task % parts, parts, unit);
    if (out)
      sums_of<true>(grad + at, out + at, x + at, s, c, center, passed + at, of_shift + vector, of_scale + vector);
    else
      sums_of<false>(grad + at, x + at, x + at, s, c, center, passed, of_shift + vector, of_scale + vector);
  }
}

// a, b and d, each (N, C) or for d null: see gradient_of.
template <typename T>
void gradient(const T* passed, const T* x, Shape s, const float* mean, const float* a, const float* b,
              const float* d, T* grad_x) {
  Size rows = s.last ? s.pixels : s.channels, parts = s.parts(rows);
#pragma omp parallel for num_threads(s.used())
  for (Size task = 0; task < s.images * parts; task++) {
    Size n = task / parts, at = n * s.values(), v = n * s.channels;
    Range range = part_of(rows, task % parts, parts, 1);
    if (d) gradient_of<true>(passed + at, x + at, s, range, mean + v, a + v, b + v, d + v, grad_x + at);
    else gradient_of<false>(passed + at, x, s, range, mean, a + v, b + v, d, grad_x + at);
  }
}

// The whole end of a branch in evaluation, image by image, so that x is read from memory once. Without a norm (whose
// vectors are null then) it is ECA alone. Means and gates are stored unless they are null.
template <typename T>
void eca_add(const T* x, const float* kernel, Size k, const T* shortcut, const Shape& s, const Norm& norm, bool relu, T* out,
             float* means, float* gates) {
#pragma omp parallel num_threads(s.used())
  {
    Size C = s.channels;
    float* mean = (float*)malloc((5 * C + padded_size(C, k)) * sizeof(float));
    float *gate = mean + C, *scale = gate + C, *shift = scale + C, *zeros = shift + C, *padded = zeros + C;
    memset(zeros, 0, C * sizeof(float));
#pragma omp for
    for (Size image = 0; image < s.images; image++) {
      Size n = s.images - 1 - image, at = n * s.values();  // the last ones are still in the cache
      moments_of<false>(x + at, s, {0, C}, mean, (float*)nullptr);
      if (norm.weight) normalize(mean, C, norm, mean);
      gate_of(mean, C, kernel, k, padded, gate);
      for (Size c = 0; c < C; c += LANES) {
        Values factor = load(gate + c, C - c);
        store(scale + c, norm.weight ? factor * norm.gain(c, C - c) : factor, C - c);
        store(shift + c, norm.weight ? factor * load(norm.bias + c, C - c) : Values{}, C - c);
      }
      apply(x + at, shortcut ? shortcut + at : nullptr, s, {0, s.last ? s.pixels : C},
            norm.weight ? norm.center : zeros, scale, shift, relu, out + at);
      if (means) memcpy(means + n * C, mean, C * sizeof(float)), memcpy(gates + n * C, gate, C * sizeof(float));
    }
    free(mean);
  }
}

// ---- the vectors

// Values of a batch, (N, C), and the norm's gradient; see operators.py for the names. Pointers may be null.
struct Batch { Size images, channels, pixels; };

// The batch's mean and biased variance from those of the images, the running statistics, and each image's means
// after the norm.
void statistics(const float* mean, const float* variance, Batch batch, const float* weight, const float* bias,
                float eps, float momentum, float* running_mean, float* running_var, float* center, float* spread,
                float* pooled) {
  Size C = batch.channels;
  float images = batch.images, values = images * batch.pixels;
  for (Size c = 0; c < C; c += LANES) {
    Size count = C - c;
    Values sum = {}, squares = {};
    for (Size n = 0; n < batch.images; n++) sum += load(mean + n * C + c, count);
    Values middle = sum / all(images);
    for (Size n = 0; n < batch.images; n++) {
      Values offset = load(mean + n * C + c, count) - middle;
      squares += load(variance + n * C + c, count) + offset * offset;
    }
    store(center + c, middle, count);
    store(spread + c, squares / all(images), count);
    if (running_mean) {
      Values old = load(running_mean + c, count), of_variance = load(running_var + c, count);
      Values unbiased = squares / all(images) * all(values / (values - 1));
      store(running_mean + c, old + all(momentum) * (middle - old), count);
      store(running_var + c, of_variance + all(momentum) * (unbiased - of_variance), count);
    }
  }
  Norm norm(weight, bias, center, spread, eps, C);
  for (Size n = 0; pooled && n < batch.images; n++) normalize(mean + n * C, C, norm, pooled + n * C);
}

void gate_gradient(const float* of_shift, const float* of_scale, Batch batch, const Norm& norm, float* grad_gate) {
  Size C = batch.channels;
  for (Size c = 0; c < C; c += LANES) {
    Size count = C - c;
    Values gain = norm.gain(c, count), bias = load(norm.bias + c, count);
    for (Size v = c; v < batch.images * C; v += C)
      store(grad_gate + v, gain * load(of_scale + v, count) + bias * load(of_shift + v, count), count);
  }
}

// The gradients of the norm's weight and bias, and the vectors a, b and d of gradient_of.
void norm_gradient(const float* gate, const float* of_shift, const float* of_scale, const float* grad_pooled,
                   const float* grad_variance, const float* mean, const float* variance, Batch batch, const Norm& norm,
                   float* a, float* b, float* d, float* grad_weight, float* grad_bias) {
  Size C = batch.channels, all_values = batch.images * C;
  for (Size c = 0; c < C; c += LANES) {
    Size count = C - c;
    Values gain = norm.gain(c, count), center = load(norm.center + c, count), of_bias = {}, of_gain = {};
    for (Size v = c; v < all_values; v += C) {
      Values factor = gate ? load(gate + v, count) : all(1);
      of_bias += factor * load(of_shift + v, count);
      of_gain += factor * load(of_scale + v, count);
      if (grad_pooled) {
        Values of_mean = load(grad_pooled + v, count);
        of_bias += of_mean;
        of_gain += of_mean * (load(mean + v, count) - center);
      }
      if (grad_variance) of_gain += all(2) * load(grad_variance + v, count) * load(variance + v, count) * gain;
    }
    Values spread = load(norm.spread + c, count) + all(norm.eps), deviation = spread;
    for (int i = 0; i < LANES; i++) deviation[i] = sqrtf(spread[i]);
    store(grad_bias + c, of_bias, count);
    store(grad_weight + c, of_gain / deviation, count);
    Values of_center = -gain * of_bias / all(batch.images), pixels = all(batch.pixels);
    Values of_spread = all(-0.5f) * of_gain * gain / spread / all(batch.images);
    for (Size v = c; v < all_values; v += C) {
      Values of_mean = of_center + all(2) * of_spread * (load(mean + v, count) - center), of_variance = of_spread;
      if (grad_pooled) of_mean += load(grad_pooled + v, count) * gain;
      if (grad_variance) of_variance += load(grad_variance + v, count) * gain * gain;
      store(a + v, gate ? load(gate + v, count) * gain : gain, count);
      store(b + v, of_mean / pixels, count);
      store(d + v, all(2) * of_variance / pixels, count);
    }
  }
}

void eca_gate(const float* pooled, Size images, Size channels, const float* kernel, Size k, int threads,
              float* gate) {
#pragma omp parallel num_threads(images * channels < 32768 ? 1 : threads)
  {
    float* padded = (float*)malloc(padded_size(channels, k) * sizeof(float));
#pragma omp for
    for (Size n = 0; n < images; n++) {
      Size v = n * channels;
      gate_of(pooled + v, channels, kernel, k, padded, gate + v);
    }
    free(padded);
  }
}

void eca_gate_backward(const float* grad_gate, const float* gate, const float* pooled, Size images, Size channels,
                       const float* kernel, Size k, float* grad_pooled, float* grad_kernel) {
  double* sums = (double*)calloc(k, sizeof(double));
  float* padded = (float*)malloc(padded_size(channels, k) * sizeof(float));
  for (Size v = 0; v < images * channels; v += channels)
    gate_gradient_of(grad_gate + v, gate + v, pooled + v, channels, kernel, k, padded, grad_pooled + v, sums);
  for (Size i = 0; i < k; i++) grad_kernel[i] = sums[i];
  free(sums), free(padded);
}

// ---- the whole end of a branch with ECA, or without a gate if kernel is null

// What backward needs of the vectors, in one piece of memory.
struct Saved {
  float *mean, *variance, *pooled, *gate, *center, *spread;

  Saved(float* at, const Shape& s, bool gated) {
    Size vector = s.images * s.channels;
    mean = at, variance = mean + vector;
    pooled = gated ? variance + vector : nullptr;
    gate = gated ? pooled + vector : nullptr;
    center = gated ? gate + vector : variance + vector;
    spread = center + s.channels;
  }
};

template <typename T>
void norm_eca(const T* x, const float* kernel, Size k, const T* shortcut, Shape s, const float* weight,
              const float* bias, float eps, float momentum, float* running_mean, float* running_var, bool relu,
              T* out, float* saved) {
  Saved v(saved, s, kernel);
  image_moments(x, s, v.mean, v.variance);
  statistics(v.mean, v.variance, {s.images, s.channels, s.pixels}, weight, bias, eps, momentum, running_mean,
             running_var, v.center, v.spread, v.pooled);
  if (kernel) eca_gate(v.pooled, s.images, s.channels, kernel, k, s.threads, v.gate);
  gate_add(x, v.gate, shortcut, s, Norm(weight, bias, v.center, v.spread, eps, s.channels), relu, out);
}

template <typename T>
void norm_eca_backward(const T* grad, const T* out, const T* x, const float* kernel, Size k, Shape s,
                       const float* weight, const float* bias, float eps, float* saved, T* passed, T* grad_x,
                       float* grad_weight, float* grad_bias, float* grad_kernel) {
  Saved v(saved, s, kernel);
  Norm norm(weight, bias, v.center, v.spread, eps, s.channels);
  Batch batch = {s.images, s.channels, s.pixels};
  Size vector = s.images * s.channels;
  float* of_shift = (float*)malloc(7 * vector * sizeof(float));
  float *of_scale = of_shift + vector, *grad_gate = of_scale + vector, *grad_pooled = grad_gate + vector;
  float *a = grad_pooled + vector, *b = a + vector, *d = b + vector;
  gate_add_backward(grad, out, x, s, v.center, passed, of_shift, of_scale);
  if (kernel) {
    gate_gradient(of_shift, of_scale, batch, norm, grad_gate);
    eca_gate_backward(grad_gate, v.gate, v.pooled, s.images, s.channels, kernel, k, grad_pooled,
                      grad_kernel);
  }
  norm_gradient(v.gate, of_shift, of_scale, kernel ? grad_pooled : nullptr, nullptr, v.mean, v.variance, batch, norm,
                a, b, d, grad_weight, grad_bias);
  gradient(out ? passed : grad, x, s, v.mean, a, b, d, grad_x);
  free(of_shift);
}

}  // namespace

#define SHAPE int64_t n, int64_t c, int64_t p, int last, int threads
#define MADE {n, c, p, last != 0, threads}
#define NORM const float *weight, const float *bias, const float *center, const float *spread, float eps
#define MADE_NORM Norm(weight, bias, center, spread, eps, c)

#define FOR_DTYPE(T, name)                                                                                          \
  void image_moments_##name(const T* x, SHAPE, float* mean, float* variance) {                                     \
    image_moments(x, MADE, mean, variance);                                                                         \
  }                                                                                                                 \
  void gate_add_##name(const T* x, const float* gate, const T* shortcut, SHAPE, NORM, int relu, T* out) {          \
    gate_add(x, gate, shortcut, MADE, MADE_NORM, relu, out);                                                        \
  }                                                                                                                 \
  void gate_add_backward_##name(const T* grad, const T* out, const T* x, SHAPE, const float* center, T* passed,    \
                                float* of_shift, float* of_scale) {                                                 \
    gate_add_backward(grad, out, x, MADE, center, passed, of_shift, of_scale);                                      \
  }                                                                                                                 \
  void gradient_##name(const T* passed, const T* x, SHAPE, const float* mean, const float* a, const float* b,      \
                       const float* d, T* grad_x) {                                                                 \
    gradient(passed, x, MADE, mean, a, b, d, grad_x);                                                               \
  }                                                                                                                 \
  void norm_eca_##name(const T* x, const float* kernel, int64_t k, const T* shortcut, SHAPE, const float* weight,  \
                       const float* bias, float eps, float momentum, float* running_mean, float* running_var,      \
                       int relu, T* out, float* saved) {                                                            \
    norm_eca(x, kernel, k, shortcut, MADE, weight, bias, eps, momentum, running_mean, running_var, relu, out,      \
             saved);                                                                                                \
  }                                                                                                                 \
  void norm_eca_backward_##name(const T* grad, const T* out, const T* x, const float* kernel, int64_t k, SHAPE,    \
                                const float* weight, const float* bias, float eps, float* saved, T* passed,        \
                                T* grad_x, float* grad_weight, float* grad_bias, float* grad_kernel) {              \
    norm_eca_backward(grad, out, x, kernel, k, MADE, weight, bias, eps, saved, passed, grad_x, grad_weight,        \
                      grad_bias, grad_kernel);                                                                      \
  }                                                                                                                 \
  void eca_add_##name(const T* x, const float* kernel, int64_t k, const T* shortcut, SHAPE, NORM, int relu,        \
                      T* out, float* means, float* gates) {                                                         \
    eca_add(x, kernel, k, shortcut, MADE, MADE_NORM, relu, out, means, gates);                                      \
  }

extern "C" {

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)

void batch_statistics(const float* mean, const float* variance, int64_t n, int64_t c, int64_t p, const float* weight,
                      const float* bias, float eps, float momentum, float* running_mean, float* running_var,
                      float* center, float* spread, float* pooled) {
  statistics(mean, variance, {n, c, p}, weight, bias, eps, momentum, running_mean, running_var, center, spread,
             pooled);
}

void normalized_means(const float* mean, int64_t n, int64_t c, NORM, float* pooled) {
  Norm norm(weight, bias, center, spread, eps, c);
  for (int64_t i = 0; i < n; i++) normalize(mean + i * c, c, norm, pooled + i * c);
}

void gradient_of_gate(const float* of_shift, const float* of_scale, int64_t n, int64_t c, NORM, float* grad_gate) {
  gate_gradient(of_shift, of_scale, {n, c, 1}, MADE_NORM, grad_gate);
}

void gradient_of_norm(const float* gate, const float* of_shift, const float* of_scale, const float* grad_pooled,
                      const float* grad_variance, const float* mean, const float* variance, int64_t n, int64_t c,
                      int64_t p, NORM, float* a, float* b, float* d, float* grad_weight, float* grad_bias) {
  norm_gradient(gate, of_shift, of_scale, grad_pooled, grad_variance, mean, variance, {n, c, p}, MADE_NORM, a, b, d,
                grad_weight, grad_bias);
}

void gate_of_eca(const float* pooled, int64_t n, int64_t c, const float* kernel, int64_t k, int threads,
                 float* gate) {
  eca_gate(pooled, n, c, kernel, k, threads, gate);
}

void gradient_of_eca(const float* grad_gate, const float* gate, const float* pooled, int64_t n, int64_t c,
                     const float* kernel, int64_t k, float* grad_pooled, float* grad_kernel) {
  eca_gate_backward(grad_gate, gate, pooled, n, c, kernel, k, grad_pooled, grad_kernel);
}
}
