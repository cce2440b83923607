// Attention under a block plan in one loop over query blocks, for CPUs; float32.
//
// Up to QUERIES rows of a query block lie transposed in cache. The keys of its list are read where
// they are, KEYS at a time, through pointers: blocks of any size and the means of skipped blocks
// are all rows. Scores are kept with a row a key, so that the softmax runs over whole vectors.
// Built by build.py, called by engines/native.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 2;
#endif
constexpr int WIDE = 16;  // columns of a tile of ROWS x WIDE sums, which fills the registers
constexpr int PARTS = WIDE / LANES;
constexpr int QUERIES = 64;
constexpr int KEYS = 132;  // a multiple of ROWS, and no fewer than a block that is observed
constexpr int LINE = 16;  // floats that memory gives at once
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr float HIDDEN = -1e30f;  // a score that a mask takes out: finite, so that differences are
constexpr int WORD = 32;  // keys whose bits a number of a mask holds

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vec load(const float* x) { return *reinterpret_cast<const Loose*>(x); }
inline void store(float* x, Vec y) { *reinterpret_cast<Loose*>(x) = y; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec larger(Vec x, Vec y) { return x > y ? x : y; }

// 2 ** x for x <= 0, to two units in the last place; below 2 ** -126 it stays there. Keeps NaN.
inline Vec exp2(Vec x) {
  x = x < -126.f ? splat(-126.f) : x;
  const Vec magic = splat(12582912.f);  // 1.5 * 2 ** 23: a sum with it is rounded to an integer
  const Vec whole = x + magic;
  const Vec f = x - (whole - magic);  // in [-1/2, 1/2]
  Vec y = splat(1.535336188319500e-4f);
  y = y * f + 1.339887440266574e-3f;
  y = y * f + 9.618437357674640e-3f;
  y = y * f + 5.550332471162809e-2f;
  y = y * f + 2.402264791363012e-1f;
  y = y * f + 6.931472028550421e-1f;
  y = y * f + 1.f;
  return (Vec)((Ints)y + (((Ints)whole - (Ints)magic) << 23));
}

// scores[r][0:WIDE] = sum over i of rows[r][i] * q[i][0:WIDE]
inline void score_tile(const float* const* rows, const float* q, int depth, float* scores) {
  Vec sum[ROWS][PARTS] = {};
  for (int i = 0; i < depth; ++i) {
    Vec b[PARTS];
    for (int p = 0; p < PARTS; ++p) b[p] = load(q + i * QUERIES + p * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const Vec a = splat(rows[r][i]);
      for (int p = 0; p < PARTS; ++p) sum[r][p] += a * b[p];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PARTS; ++p) store(scores + r * QUERIES + p * LANES, sum[r][p]);
}

// out[r][0:WIDE] = fade[r] * out[r][0:WIDE] + sum over keys of weight[key][r] * rows[key][0:WIDE]
inline void value_tile(const float* weight, const float* const* rows, int keys, int column,
                       const float* fade, float* out, int width) {
  Vec sum[ROWS][PARTS];
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PARTS; ++p) sum[r][p] = fade[r] * load(out + r * width + p * LANES);
  for (int key = 0; key < keys; ++key) {
    Vec b[PARTS];
    for (int p = 0; p < PARTS; ++p) b[p] = load(rows[key] + column + p * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const Vec a = splat(weight[key * QUERIES + r]);
      for (int p = 0; p < PARTS; ++p) sum[r][p] += a * b[p];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PARTS; ++p) store(out + r * width + p * LANES, sum[r][p]);
}

// Some rows of a query block on their way through its keys: one a thread, used again.
class Rows {
 public:
  Rows(int depth, int width)
      : depth_(depth), width_(width), q_(depth * QUERIES), out_((QUERIES + ROWS) * width) {}

  void start(const float* query, int64_t stride, int count, float scale) {
    count_ = count;
    padded_ = (count + WIDE - 1) / WIDE * WIDE;
    keys_ = 0;
    for (int i = 0; i < depth_; ++i) {
      for (int r = 0; r < count; ++r) q_[i * QUERIES + r] = query[r * stride + i] * scale;
      for (int r = count; r < padded_; ++r) q_[i * QUERIES + r] = 0;
    }
    std::fill_n(top_, QUERIES, NOTHING);
    std::fill_n(sum_, QUERIES, 0.f);
    std::fill(out_.begin(), out_.end(), 0.f);
  }

  // seen: the bits of these rows, every so many numbers, of which this key has the column-th; or null
  void add(const float* key, const float* value, float bias = 0, const int32_t* seen = nullptr,
           int64_t words = 0, int64_t column = 0) {
    seen_[keys_] = seen ? seen + column / WORD : nullptr;
    bit_[keys_] = column % WORD;
    words_ = seen ? words : words_;
    masked_ |= seen != nullptr;
    key_rows_[keys_] = key;
    value_rows_[keys_] = value;
    bias_[keys_] = bias;
    biased_ |= bias != 0;
    for (int i = 0; i < depth_; i += LINE) {  // rows far apart are not foreseen by the CPU
      __builtin_prefetch(key + i, 0, 2);
      __builtin_prefetch(value + i, 0, 2);
    }
    if (++keys_ == KEYS) attend();
  }

  // Attend to the keys that were added since. Their largest lead over what a row saw before, in
  // powers of two; NOTHING without keys.
  float attend() {
    float lead = NOTHING;
    if (keys_ == 0) return lead;
    for (int key = keys_; key % ROWS; ++key) key_rows_[key] = key_rows_[0];  // computed, not used
    for (int key = 0; key < keys_; key += ROWS)
      for (int c = 0; c < padded_; c += WIDE)
        score_tile(key_rows_ + key, &q_[c], depth_, scores_ + key * QUERIES + c);
    if (biased_)
      for (int key = 0; key < keys_; ++key)
        for (int c = 0; c < padded_; c += LANES) {
          float* at = scores_ + key * QUERIES + c;
          store(at, load(at) + bias_[key]);
        }
    if (masked_)
      for (int key = 0; key < keys_; ++key)
        for (int r = 0; seen_[key] && r < count_; ++r)
          if (!(seen_[key][r * words_] >> bit_[key] & 1)) scores_[key * QUERIES + r] = HIDDEN;
    for (int c = 0; c < padded_; c += LANES) lead = std::max(lead, soften(c));
    for (int c = 0; c < width_; c += WIDE)
      for (int r = 0; r < count_; r += ROWS)
        value_tile(scores_ + r, value_rows_, keys_, c, fade_ + r, &out_[r * width_ + c], width_);
    keys_ = 0;
    biased_ = masked_ = false;
    return lead;
  }

  void finish(float* out, int64_t stride, float* lse) const {
    for (int r = 0; r < count_; ++r) {
      const bool none = sum_[r] == 0 || top_[r] <= HIDDEN;
      const float share = none ? 0 : 1 / sum_[r];
      for (int i = 0; i < depth_; ++i) out[r * stride + i] = out_[r * width_ + i] * share;
      if (lse) lse[r] = none ? NOTHING : (top_[r] + std::log2(sum_[r])) * LN_2;
    }
  }

 private:
  // From scores to weights, LANES columns at once; the largest lead of one.
  float soften(int c) {
    float* scores = scores_ + c;
    const Vec before = load(top_ + c);
    Vec here = splat(NOTHING), sum = {};
    for (int key = 0; key < keys_; ++key) here = larger(load(scores + key * QUERIES), here);
    const Vec top = larger(here, before), fade = exp2(before - top), leads = here - before;
    for (int key = 0; key < keys_; ++key) {
      const Vec weight = exp2(load(scores + key * QUERIES) - top);
      store(scores + key * QUERIES, weight);
      sum += weight;
    }
    store(top_ + c, top);
    store(sum_ + c, load(sum_ + c) * fade + sum);
    store(fade_ + c, fade);
    float lead = NOTHING;
    for (int r = 0; r < std::min(LANES, count_ - c); ++r) lead = std::max(lead, leads[r]);
    return lead;
  }

  int depth_, width_, count_ = 0, padded_ = 0, keys_ = 0;
  int64_t words_ = 0;
  bool biased_ = false, masked_ = false;
  const float *key_rows_[KEYS], *value_rows_[KEYS];
  const int32_t* seen_[KEYS];
  float bias_[KEYS];
  int bit_[KEYS];
  // A last tile of rows may reach past the last query: into what is never used.
  float top_[QUERIES + ROWS], sum_[QUERIES + ROWS], fade_[QUERIES + ROWS] = {};
  float scores_[KEYS * QUERIES + ROWS] = {};
  std::vector<float> q_, out_;
};

}  // namespace

// As the structures of engines/native.py. A stride of 0 shares a part among a batch or heads.
struct Rows4 {
  float* data;
  int64_t batch, head, row;

  float* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

struct Lists {
  const int32_t* data;
  int64_t batch, head;

  const int32_t* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

struct Job {
  Rows4 q, k, v, mean_k, mean_v, out;
  Lists count, index, q_edges, kv_edges, pattern;
  const int32_t* bits;  // of the patterns, (patterns, q_block, words); null without partial blocks
  const float* log_size;  // of each block's mean, (batch, heads, kv_blocks); null without means
  float *lse, *margin;  // (batch, heads, q_len) and (batch, heads, q_blocks, listed), or null
  int64_t batch, heads, q_len, q_blocks, kv_blocks, listed, depth, width,
      q_block, words;
  float scale;
};

namespace {

void add_means(const Job& job, int64_t b, int64_t h, const int32_t* list, int count,
               std::vector<char>& kept, Rows& rows) {
  kept.assign(job.kv_blocks, 0);
  for (int i = 0; i < count; ++i) kept[list[i]] = 1;
  const float* log_size = job.log_size + (b * job.heads + h) * job.kv_blocks;
  const float *k = job.mean_k.of(b, h), *v = job.mean_v.of(b, h);
  for (int64_t n = 0; n < job.kv_blocks; ++n)
    if (!kept[n] && log_size[n] > NOTHING)
      rows.add(k + n * job.mean_k.row, v + n * job.mean_v.row, log_size[n] * LOG2_E);
}

// One query block of one head.
void run(const Job& job, int64_t item, std::vector<char>& kept, Rows& rows) {
  const int64_t m = item % job.q_blocks, bh = item / job.q_blocks;
  const int64_t b = bh / job.heads, h = bh % job.heads;
  const int32_t *q_edges = job.q_edges.of(b, h) + m, *edges = job.kv_edges.of(b, h);
  const int32_t* list = job.index.of(b, h) + m * job.listed;
  const int32_t* patterns = job.bits ? job.pattern.of(b, h) + m * job.listed : nullptr;
  const int count = job.count.of(b, h)[m];
  const float *k = job.k.of(b, h), *v = job.v.of(b, h);
  std::vector<float> leads(job.margin ? count : 0, NOTHING);
  for (int64_t first = q_edges[0]; first < q_edges[1]; first += QUERIES) {
    const int size = std::min<int64_t>(QUERIES, q_edges[1] - first);
    rows.start(job.q.of(b, h) + first * job.q.row, job.q.row, size, job.scale * LOG2_E);
    for (int i = 0; i < count; ++i) {
      const int64_t start = edges[list[i]], end = edges[list[i] + 1];
      const int32_t* seen = nullptr;
      if (job.bits && patterns[i])
        seen = job.bits + (patterns[i] * job.q_block + first - q_edges[0]) * job.words;
      for (int64_t t = start; t < end; ++t)
        rows.add(k + t * job.k.row, v + t * job.v.row, 0, seen, job.words, t - start);
      if (job.margin) leads[i] = std::max(leads[i], rows.attend());
    }
    if (job.log_size) add_means(job, b, h, list, count, kept, rows);
    rows.attend();
    float* lse = job.lse ? job.lse + bh * job.q_len + first : nullptr;
    rows.finish(job.out.of(b, h) + first * job.out.row, job.out.row, lse);
  }
  for (size_t i = 0; i < leads.size(); ++i) job.margin[item * job.listed + i] = leads[i] * LN_2;
}

}  // namespace

extern "C" void vidsparse_attend(const Job* job, int threads) {
  const int64_t items = job->batch * job->heads * job->q_blocks;
  std::atomic<int64_t> next{0};  // taken one by one: a thread that is held up holds up one block
#pragma omp parallel num_threads(threads)
  {
    Rows rows(job->depth, job->width);
    std::vector<char> kept;
    for (int64_t item; (item = next++) < items;) run(*job, item, kept, rows);
  }
}
