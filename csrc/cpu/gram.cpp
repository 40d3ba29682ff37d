// Many logged vectors at once on the CPU: their squares, their inner products (gram) and their linear combinations
// (combine). A column of 256 elements of all vectors is decoded into the cache, then used there.

#include <algorithm>

#include "cpu/block.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

// A tile of inner products is kept in registers: 16 sums and 5 operands of AVX-512's 32 registers, 8 and 3 of 16.
constexpr int tile_rows = 4;
constexpr int tile_columns = lanes == 16 ? 4 : 2;
struct Tile {
    Register sums[tile_rows][tile_columns];
};

// Products are fused in float32 over at most 64 per lane; their sums are added up in double.
constexpr int blocks_per_sum = 64 * lanes / block_size;
static_assert(blocks_per_sum > 0);

// Blocks a cache line further apart than their size: at a power of two, the same columns of all vectors would compete
// for a few lines of the cache.
struct Column {
    Block block;
    alignas(64) char gap[64];
};

// One block of a vector: where it is if it is plain float32, else decoded to `buffer`.
LMC_REGISTER const float* block_of(const EncodedVector& x, int64_t block, int count, Block& buffer) {
    if (x.format != Format::fp32 || x.scales != nullptr || x.payload == nullptr || count < block_size) {
        decode_block(x.payload, x.scales, x.format, block, count, buffer);
        return buffer.x;
    }
    const float* p = static_cast<const float*>(x.payload) + block * block_size;
    for (int i = 0; i < block_size; i += 64 / int(sizeof *p))
        __builtin_prefetch(p + i + prefetch_blocks * block_size, 0, 2);
    return p;
}

LMC_REGISTER double sum_of_lanes(Register x) {
    typedef float Four __attribute__((vector_size(16)));
    alignas(64) float values[lanes];
    store(values, x);
    Four sum = {};
    for (int i = 0; i < lanes; i += 4) {
        Four part;
        std::memcpy(&part, values + i, sizeof part);
        sum += part;
    }
    return double((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// tile += <u[row + i], u[column + j]> over one block for `rows` rows. Columns beyond `count` repeat the last one.
template <int rows>
LMC_REGISTER void inner_products(const float* const* u, int64_t count, int64_t row, int64_t column, Tile& tile) {
    const float* b[tile_columns];
    for (int j = 0; j < tile_columns; ++j) b[j] = u[std::min(column + j, count - 1)];
    Register sums[rows][tile_columns];
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < tile_columns; ++j) sums[i][j] = tile.sums[i][j];
    for (int at = 0; at < block_size; at += lanes) {
        Register y[tile_columns];
        for (int j = 0; j < tile_columns; ++j) y[j] = load(b[j] + at);
        for (int i = 0; i < rows; ++i) {
            const Register x = load(u[row + i] + at);
            for (int j = 0; j < tile_columns; ++j) sums[i][j] = multiply_add(x, y[j], sums[i][j]);
        }
    }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < tile_columns; ++j) tile.sums[i][j] = sums[i][j];
}

// function(std::integral_constant) with the number of rows from `row` on that a tile has.
LMC_REGISTER void with_rows(int64_t left, auto&& function) {
    static_assert(tile_rows == 4);
    switch (left) {
        case 1:
            return function(std::integral_constant<int, 1>());
        case 2:
            return function(std::integral_constant<int, 2>());
        case 3:
            return function(std::integral_constant<int, 3>());
        default:
            return function(std::integral_constant<int, 4>());
    }
}

// body(row, column, tile) for every tile that touches the lower triangle's first `wanted` columns.
LMC_REGISTER void for_each_tile(int64_t count, int64_t wanted, std::vector<Tile>& tiles, auto&& body) {
    Tile* tile = tiles.data();
    for (int64_t row = 0; row < count; row += tile_rows)
        for (int64_t column = 0; column < std::min(row + tile_rows, wanted); column += tile_columns)
            body(row, column, *tile++);
}

// Move the sums of all tiles to out [count, wanted].
void empty(int64_t count, int64_t wanted, std::vector<Tile>& tiles, double* out) {
    for_each_tile(count, wanted, tiles, [=](int64_t row, int64_t column, Tile& tile) __attribute__((always_inline)) {
        for (int i = 0; i < tile_rows && row + i < count; ++i)
            for (int j = 0; j < tile_columns && column + j < wanted; ++j)
                out[(row + i) * wanted + column + j] += sum_of_lanes(tile.sums[i][j]);
        tile = {};
    });
}

// sums[i] += the sum over k of c[i * stride + k] x[k] over one block.
template <int rows>
LMC_REGISTER void linear_combinations(const float* const* x, int64_t count, const float* c, int64_t stride,
                                      Block* sums) {
    for (int at = 0; at < block_size; at += Pack::width) {
        Pack sum[rows];
        for (int i = 0; i < rows; ++i) sum[i] = load_pack(sums[i].x + at);
        for (int64_t k = 0; k < count; ++k) {
            const Pack value = load_pack(x[k] + at);
            for (int i = 0; i < rows; ++i) sum[i] = fma(Pack(c[i * stride + k]), value, sum[i]);
        }
        for (int i = 0; i < rows; ++i) store_pack(sums[i].x + at, sum[i]);
    }
}

constexpr int64_t vectors_at_once = 16;  // decoded at a time by `combine`, so that they stay in the first-level cache

}  // namespace

void row_squares(const std::vector<EncodedVector>& rows, int64_t n, int threads, double* chunk_squares) {
    const int64_t chunks = (n + chunk_size - 1) / chunk_size;
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        for (size_t row = 0; row < rows.size(); ++row) {
            DoubleSum squares;
            for_each_block_of(begin, end, [&](int64_t block, int64_t, int count) __attribute__((always_inline)) {
                Block x;
                squares.add_squares(block_of(rows[row], block, count, x));
            });
            chunk_squares[int64_t(row) * chunks + chunk] = squares.value();
        }
    });
}

void gram(const std::vector<EncodedVector>& vectors, int64_t wanted, int64_t n, int64_t strips, int threads,
          double* strip_sums) {
    const int64_t count = int64_t(vectors.size()), blocks = (n + block_size - 1) / block_size;
    const int64_t row_tiles = (count + tile_rows - 1) / tile_rows,
                  column_tiles = (wanted + tile_columns - 1) / tile_columns;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && strips > 1)
    for (int64_t strip = 0; strip < strips; ++strip) {
        std::vector<Column> columns(static_cast<size_t>(count));
        std::vector<const float*> u(static_cast<size_t>(count));
        std::vector<Tile> tiles(static_cast<size_t>(row_tiles * column_tiles));
        double* out = strip_sums + strip * count * wanted;
        const int64_t end = (strip + 1) * blocks / strips;
        int summed = 0;
        for (int64_t block = strip * blocks / strips; block < end; ++block) {
            const int size = int(std::min<int64_t>(n - block * block_size, block_size));
            for (int64_t k = 0; k < count; ++k) u[k] = block_of(vectors[k], block, size, columns[k].block);
            for_each_tile(count, wanted, tiles,
                          [&](int64_t row, int64_t column, Tile& tile) __attribute__((always_inline)) {
                              with_rows(count - row, [&](auto rows) __attribute__((always_inline)) {
                                  inner_products<rows()>(u.data(), count, row, column, tile);
                              });
                          });
            if (++summed == blocks_per_sum || block + 1 == end) {
                empty(count, wanted, tiles, out);
                summed = 0;
            }
        }
    }
}

void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,
             const float* coefficients, int threads) {
    const int64_t count = int64_t(vectors.size());
    for_each_chunk(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        std::vector<Block> sums(static_cast<size_t>(requests));
        Column columns[vectors_at_once];
        const float* x[vectors_at_once];
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int size) __attribute__((always_inline)) {
            for (int64_t r = 0; r < requests; ++r) load_block(out + r * n + at, size, sums[r]);
            for (int64_t first = 0; first < count; first += vectors_at_once) {
                const int64_t some = std::min(count - first, vectors_at_once);
                for (int64_t k = 0; k < some; ++k) x[k] = block_of(vectors[first + k], block, size, columns[k].block);
                for (int64_t r = 0; r < requests; r += tile_rows)
                    with_rows(requests - r, [&](auto rows) __attribute__((always_inline)) {
                        linear_combinations<rows()>(x, some, coefficients + r * count + first, count, &sums[r]);
                    });
            }
            for (int64_t r = 0; r < requests; ++r)
                std::memcpy(out + r * n + at, sums[r].x, size_t(size) * sizeof(float));
        });
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
