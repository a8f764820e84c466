// Low-rank adapters by segments of tokens: forward, and backward with a gradient per task.
//
// Two register tiles do all the work. `dots` (cpu/dots.h) makes products of rows with rows (x with
// rows of A, dy with rows of B). `outer` adds coefficients times rows (to y, to dx, and to the
// gradients). Neither needs a packed or transposed copy of a factor, and rank rows are found by
// table, so those of a task may lie anywhere.
//
// Work is cut by tokens where rows of the result are tokens, by columns where they are rank rows:
// no two threads write to one place, and each sum runs in the same order with any number of
// threads.

#include "common/lora.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/half.h"
#include "common/philox.h"
#include "cpu/dots.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int64_t kBlock = 16;        // tokens that a thread takes at a time
constexpr int64_t kGradTokens = 128;  // tokens whose columns are in the L1 cache together
constexpr int64_t kGradColumns = 64;  // columns that a thread takes at a time
static_assert(kGradColumns == kMaskColumns, "one block of columns, one block of the mask");

// products[i * stride + k] = left[i] . right[k], for n left rows and m right rows.
template <int Bytes, class Scalar>
MTLCORE_BODY void all_dots(const Scalar* const* left, int64_t n, const Scalar* const* right,
                           int64_t m, int64_t count, Scalar* products, int64_t stride) {
    using T = Tile<Scalar, Bytes>;
    for (int64_t i = 0; i < n; i += T::kLeft) {
        const Scalar* a[T::kLeft];  // surplus rows of a tile repeat the last one
        for (int64_t p = 0; p < T::kLeft; ++p) a[p] = left[std::min(i + p, n - 1)];
        for (int64_t k = 0; k < m; k += T::kRight) {
            const Scalar* b[T::kRight];
            for (int64_t q = 0; q < T::kRight; ++q) b[q] = right[std::min(k + q, m - 1)];
            Scalar sums[T::kLanes];
            dots<Bytes>(a, b, count, sums);
            for (int64_t p = 0; p < std::min<int64_t>(T::kLeft, n - i); ++p) {
                for (int64_t q = 0; q < std::min<int64_t>(T::kRight, m - k); ++q) {
                    products[(i + p) * stride + k + q] = sums[p * T::kRight + q];
                }
            }
        }
    }
}

// target[i] += sum_k coefficients[i * step_i + k * step_k] * rows(k), in columns [0, V vectors).
template <int Bytes, int V, class Scalar, class Rows, class Target>
MTLCORE_BODY void outer_vectors(const Scalar* coefficients, int64_t step_i, int64_t step_k,
                                const Rows& rows, int64_t depth, int64_t column,
                                Target* const* target, int64_t count) {
    using T = Tile<Scalar, Bytes>;
    using Vector = typename T::Vector;
    Vector sums[T::kRows][V] = {};
    const Scalar* own[T::kRows];
    for (int64_t i = 0; i < T::kRows; ++i) {
        own[i] = coefficients + std::min(i, count - 1) * step_i;
    }
    for (int64_t k = 0; k < depth; ++k) {
        const Scalar* row = rows(k) + column;
        Vector parts[V];
        for (int v = 0; v < V; ++v) load(row + v * T::kLanes, parts[v]);
        for (int i = 0; i < T::kRows; ++i) {
            const Scalar coefficient = own[i][k * step_k];
            for (int v = 0; v < V; ++v) sums[i][v] += coefficient * parts[v];
        }
    }
    for (int i = 0; i < T::kRows; ++i) {
        if (i >= count) break;
        Target* out = target[i] + column;
        for (int v = 0; v < V; ++v) {
            if constexpr (std::is_same_v<Target, Scalar>) {
                Vector sum;
                load(out + v * T::kLanes, sum);
                store(sum + sums[i][v], out + v * T::kLanes);
            } else {
                for (int lane = 0; lane < T::kLanes; ++lane) {
                    Target& one = out[v * T::kLanes + lane];
                    narrow(widen(one) + sums[i][v][lane], one);
                }
            }
        }
    }
}

// The same for n targets and `columns` columns.
template <int Bytes, class Scalar, class Rows, class Target>
MTLCORE_BODY void outer(const Scalar* coefficients, int64_t step_i, int64_t step_k,
                        const Rows& rows, int64_t depth, Target* const* targets, int64_t n,
                        int64_t columns) {
    using T = Tile<Scalar, Bytes>;
    constexpr int64_t kWide = T::kVectors * T::kLanes;
    int64_t column = 0;
    for (; column + kWide <= columns; column += kWide) {
        for (int64_t i = 0; i < n; i += T::kRows) {
            outer_vectors<Bytes, T::kVectors>(coefficients + i * step_i, step_i, step_k, rows,
                                              depth, column, targets + i, n - i);
        }
    }
    for (; column + T::kLanes <= columns; column += T::kLanes) {
        for (int64_t i = 0; i < n; i += T::kRows) {
            outer_vectors<Bytes, 1>(coefficients + i * step_i, step_i, step_k, rows, depth, column,
                                    targets + i, n - i);
        }
    }
    for (; column < columns; ++column) {
        for (int64_t i = 0; i < n; ++i) {
            Scalar sum = 0;
            for (int64_t k = 0; k < depth; ++k) {
                sum += coefficients[i * step_i + k * step_k] * rows(k)[column];
            }
            narrow(widen(targets[i][column]) + sum, targets[i][column]);
        }
    }
}

// Multiply `count` columns from `first` (a multiple of 64) of one token's x with its mask.
template <class Scalar>
MTLCORE_BODY void drop(const Dropout& dropout, int64_t task, int64_t token, int64_t first,
                       int64_t count, Scalar* values) {
    const int32_t position = dropout.positions[token];
    if (position < 0) return;
    const double share = dropout.shares[task];
    const auto kept = static_cast<Scalar>(1.0 / (1.0 - share));
    const auto threshold = static_cast<uint32_t>(share * 0x1p32);
    uint32_t words[kMaskColumns];
    for (int64_t column = 0; column < count; column += kMaskColumns) {
        philox_block(static_cast<uint64_t>(dropout.keys[task]), dropout.layer,
                     static_cast<uint32_t>(position),
                     static_cast<uint32_t>((first + column) / kMaskColumns), words);
        const int64_t width = std::min<int64_t>(kMaskColumns, count - column);
        for (int64_t c = 0; c < width; ++c) {
            values[column + c] *= words[c] >= threshold ? kept : Scalar(0);
        }
    }
}

template <class Scalar>
bool drops(const Lora<Scalar>& lora, int64_t task) {
    return lora.dropout.any && lora.dropout.shares[task] > 0;
}

// Rows of one task and their slots, ready for the tiles.
template <class Scalar>
struct Block {
    std::vector<Scalar> staged;        // [kBlock, columns] copies that were widened or masked
    std::vector<Scalar> coefficients;  // [kBlock, width]
    std::vector<const Scalar*> factor_rows;
    const Scalar* rows[kBlock];

    template <class X>
    Block(const Lora<Scalar>& lora, const TokenPass<X, Scalar>* pass) {
        if (pass == nullptr) return;
        int64_t columns = 0;
        for (const auto& side : pass->sources) columns = std::max(columns, side.columns);
        for (const auto& side : pass->targets) columns = std::max(columns, side.columns);
        staged.resize(kBlock * columns);
        coefficients.resize(kBlock * lora.width);
        factor_rows.resize(lora.width);
    }

    // `rows` of the tokens [start, start + n).
    template <class X>
    void take(const Side<const X, Scalar>& side, int64_t start, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            const X* row = side.tokens + (start + i) * side.stride;
            if constexpr (std::is_same_v<X, Scalar>) {
                rows[i] = row;
            } else {
                Scalar* copy = staged.data() + i * side.columns;
                for (int64_t c = 0; c < side.columns; ++c) copy[c] = widen(row[c]);
                rows[i] = copy;
            }
        }
    }

    // `factor_rows` of the slots [begin, end) of a task.
    template <class X>
    void point(const Lora<Scalar>& lora, const Side<X, Scalar>& side, int64_t task, int64_t begin,
               int64_t end) {
        const int32_t* row = lora.rows + task * lora.width;
        for (int64_t k = begin; k < end; ++k) {
            factor_rows[k - begin] = side.factor + (row[k] - side.first) * side.columns;
        }
    }
};

struct Item {
    int64_t task, start, count;
};

inline int64_t blocks_of(int64_t columns) {
    return (columns + kGradColumns - 1) / kGradColumns;
}

inline std::vector<Item> items_of(const Segment* segments, int64_t segment_count) {
    std::vector<Item> items;
    for (int64_t s = 0; s < segment_count; ++s) {
        for (int64_t token = segments[s].start; token < segments[s].stop; token += kBlock) {
            items.push_back({segments[s].task, token, std::min(kBlock, segments[s].stop - token)});
        }
    }
    return items;
}

// Copies of a block's rows, unless they are copies already, times their masks.
template <class Scalar>
MTLCORE_BODY void drop_rows(const Lora<Scalar>& lora, const Item& item, int64_t columns,
                            Block<Scalar>& block) {
    for (int64_t i = 0; i < item.count; ++i) {
        Scalar* copy = block.staged.data() + i * columns;
        if (block.rows[i] != copy) std::copy_n(block.rows[i], columns, copy);
        drop(lora.dropout, item.task, item.start + i, 0, columns, copy);
        block.rows[i] = copy;
    }
}

// The slots of one source, for the tokens of one item; see TokenPass.
template <int Bytes, class X, class Scalar>
MTLCORE_BODY void reduce(const Lora<Scalar>& lora, const TokenPass<X, Scalar>& pass,
                         const Side<const X, Scalar>& side, const Item& item,
                         Block<Scalar>& block) {
    const auto [task, start, n] = item;
    const auto [begin, end] = side.slots(lora, task);
    if (begin == end) return;
    const int64_t width = lora.width;
    Scalar* reduced = pass.reduced + start * width + begin;
    const Scalar* scales = lora.scales + task * width + begin;
    block.take(side, start, n);
    if (side.drops && drops(lora, task)) drop_rows(lora, item, side.columns, block);
    block.point(lora, side, task, begin, end);
    all_dots<Bytes>(block.rows, n, block.factor_rows.data(), end - begin, side.columns, reduced,
                    width);
    if (pass.scaling != Scaling::kStored) return;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t k = 0; k < end - begin; ++k) reduced[i * width + k] *= scales[k];
    }
}

// The tokens of one target, for those of one item; see TokenPass.
template <int Bytes, class X, class Scalar>
MTLCORE_BODY void expand(const Lora<Scalar>& lora, const TokenPass<X, Scalar>& pass,
                         const Side<X, Scalar>& side, const Item& item, Block<Scalar>& block) {
    const auto [task, start, n] = item;
    const auto [begin, end] = side.slots(lora, task);
    if (begin == end) return;
    const int64_t width = lora.width;
    const int64_t slots = end - begin;
    const int64_t columns = side.columns;
    const Scalar* coefficients = pass.reduced + start * width + begin;
    if (pass.scaling == Scaling::kOnUse) {
        const Scalar* scales = lora.scales + task * width + begin;
        Scalar* scaled = block.coefficients.data();
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t k = 0; k < slots; ++k) {
                scaled[i * width + k] = coefficients[i * width + k] * scales[k];
            }
        }
        coefficients = scaled;
    }
    block.point(lora, side, task, begin, end);
    const Scalar* const* factor_rows = block.factor_rows.data();
    const auto rows = [factor_rows](int64_t k) { return factor_rows[k]; };
    if (!(side.drops && drops(lora, task))) {
        X* targets[kBlock];
        for (int64_t i = 0; i < n; ++i) targets[i] = side.tokens + (start + i) * side.stride;
        outer<Bytes>(coefficients, width, 1, rows, slots, targets, n, columns);
        return;
    }
    Scalar* targets[kBlock];
    std::fill_n(block.staged.data(), n * columns, Scalar(0));
    for (int64_t i = 0; i < n; ++i) targets[i] = block.staged.data() + i * columns;
    outer<Bytes>(coefficients, width, 1, rows, slots, targets, n, columns);
    for (int64_t i = 0; i < n; ++i) {
        drop(lora.dropout, task, start + i, 0, columns, targets[i]);
        X* out = side.tokens + (start + i) * side.stride;
        for (int64_t c = 0; c < columns; ++c) narrow(widen(out[c]) + targets[i][c], out[c]);
    }
}

template <int Bytes, class X, class Scalar>
MTLCORE_BODY void tokens_body(const Lora<Scalar>& lora, const TokenPass<X, Scalar>& pass,
                              const Item& item, Block<Scalar>& block) {
    for (const auto& side : pass.sources) reduce<Bytes>(lora, pass, side, item, block);
    for (const auto& side : pass.targets) expand<Bytes>(lora, pass, side, item, block);
}

// What one thread needs for columns of gradients.
template <class Scalar>
struct Columns {
    std::vector<Scalar> source;  // [kGradTokens, kGradColumns]
    std::vector<Scalar> sums;    // [width, kGradColumns]
    std::vector<Scalar*> targets;

    Columns(int64_t width)
        : source(kGradTokens * kGradColumns), sums(width * kGradColumns), targets(width) {
        for (int64_t k = 0; k < width; ++k) targets[k] = sums.data() + k * kGradColumns;
    }
};

// A factor's gradients in the columns [first, first + count), of all segments: coefficientsᵀ source
// of each, times what its slot asks for.
template <int Bytes, class X, class Scalar>
MTLCORE_BODY void grad_body(const Lora<Scalar>& lora, const LoraGrads<X, Scalar>& grads,
                            int64_t first, int64_t count, Columns<Scalar>& columns) {
    const int64_t width = lora.width;
    Scalar* const buffer = columns.source.data();
    for (int64_t s = 0; s < lora.segment_count; ++s) {
        const Segment segment = lora.segments[s];
        const int64_t task = segment.task;
        const auto [begin, end] = grads.side.slots(lora, task);
        const int64_t slots = end - begin;
        if (segment.start >= segment.stop || slots == 0) continue;
        const int64_t* places = grads.offsets + task * width + begin;
        if (std::all_of(places, places + slots, [](int64_t place) { return place < 0; })) continue;
        const bool masked = grads.side.drops && drops(lora, task);
        std::fill_n(columns.sums.data(), slots * kGradColumns, Scalar(0));
        for (int64_t start = segment.start; start < segment.stop; start += kGradTokens) {
            const int64_t n = std::min(kGradTokens, segment.stop - start);
            for (int64_t i = 0; i < n; ++i) {
                const X* row = grads.side.tokens + (start + i) * grads.side.stride + first;
                Scalar* copy = buffer + i * kGradColumns;
                for (int64_t c = 0; c < count; ++c) copy[c] = widen(row[c]);
                if (masked) drop(lora.dropout, task, start + i, first, count, copy);
            }
            outer<Bytes>(
                grads.coefficients + start * width + begin, 1, width,
                [buffer](int64_t i) { return buffer + i * kGradColumns; }, n,
                columns.targets.data(), slots, count);
        }
        for (int64_t k = 0; k < slots; ++k) {
            if (places[k] < 0) continue;
            Scalar factor = grads.weights[task * width + begin + k];
            if (grads.scaled) factor *= lora.scales[task * width + begin + k];
            Scalar* out = grads.memory + places[k] + first;
            const Scalar* sums = columns.targets[k];
            if (grads.square) {
                for (int64_t c = 0; c < count; ++c) {
                    out[c] += (factor * sums[c]) * (factor * sums[c]);
                }
            } else {
                for (int64_t c = 0; c < count; ++c) out[c] += factor * sums[c];
            }
        }
    }
}

// Each body once for every instruction set.
#define MTLCORE_FOR_EACH_TARGET(name, params, arguments) \
    template <class X, class Scalar>                     \
    void name##_plain params {                           \
        name##_body<16> arguments;                       \
    }                                                    \
    template <class X, class Scalar>                     \
    MTLCORE_AVX2 void name##_avx2 params {               \
        name##_body<32> arguments;                       \
    }                                                    \
    template <class X, class Scalar>                     \
    MTLCORE_AVX512 void name##_avx512 params {           \
        name##_body<64> arguments;                       \
    }                                                    \
    template <class X, class Scalar>                     \
    auto name##_kernel() {                               \
        return has_avx512() ? name##_avx512<X, Scalar>   \
               : has_avx2() ? name##_avx2<X, Scalar>     \
                            : name##_plain<X, Scalar>;   \
    }

MTLCORE_FOR_EACH_TARGET(tokens,
                        (const Lora<Scalar>& lora, const TokenPass<X, Scalar>& pass,
                         const Item& item, Block<Scalar>& block),
                        (lora, pass, item, block))
MTLCORE_FOR_EACH_TARGET(grad,
                        (const Lora<Scalar>& lora, const LoraGrads<X, Scalar>& grads, int64_t first,
                         int64_t count, Columns<Scalar>& columns),
                        (lora, grads, first, count, columns))

}  // namespace

template <class X, class Scalar>
void run_lora(const Lora<Scalar>& lora, const TokenPass<X, Scalar>* pass,
              const std::vector<LoraGrads<X, Scalar>>& grads, [[maybe_unused]] int threads) {
    const auto tokens = tokens_kernel<X, Scalar>();
    const auto grad = grad_kernel<X, Scalar>();
    std::vector<Item> items;
    if (pass != nullptr) items = items_of(lora.segments, lora.segment_count);
    if (pass != nullptr && !pass->sources.empty()) {  // slots that a task lacks stay 0
        std::fill_n(pass->reduced, lora.tokens * lora.width, Scalar(0));
    }
    const auto item_count = static_cast<int64_t>(items.size());
    int64_t parts = 0;
    for (const auto& one : grads) parts += blocks_of(one.side.columns);
#pragma omp parallel num_threads(threads) if (std::max(item_count, parts) > 1)
    {
        Block<Scalar> block(lora, pass);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < item_count; ++i) tokens(lora, *pass, items[i], block);
        Columns<Scalar> columns(parts > 0 ? lora.width : 0);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; ++part) {
            const LoraGrads<X, Scalar>* one = grads.data();
            int64_t number = part;
            while (number >= blocks_of(one->side.columns))
                number -= blocks_of((one++)->side.columns);
            const int64_t first = number * kGradColumns;
            grad(lora, *one, first, std::min(kGradColumns, one->side.columns - first), columns);
        }
    }
}

#define MTLCORE_INSTANTIATE(X, Scalar)                                       \
    template void run_lora(const Lora<Scalar>&, const TokenPass<X, Scalar>*, \
                           const std::vector<LoraGrads<X, Scalar>>&, int);
MTLCORE_INSTANTIATE(float, float)
MTLCORE_INSTANTIATE(double, double)
MTLCORE_INSTANTIATE(Bfloat16, float)
MTLCORE_INSTANTIATE(Float16, float)

}  // namespace mtlcore::cpu
