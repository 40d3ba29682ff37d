// Many logged vectors at once on the CPU: their squares, their inner products (gram) and their linear combinations
// (combine). A column of 256 elements of all vectors is decoded into the cache, then used there.

#include <algorithm>

#include "cpu/block.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

// A tile of inner products is kept in registers: 16 sums and 8 operands of AVX-512's 32 registers, 8 and 6 of 16.
constexpr int tile_rows = 4;
constexpr int tile_columns = lanes == 16 ? 4 : 2;

// Blocks a cache line further apart than their size: at a power of two, the same columns of all vectors would compete
// for a few lines of the cache.
struct Column {
    Block block;
    alignas(64) char gap[64];
};

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

// out[row, column] += <u[row], u[column]> over one block: fused in float32 over at most 64 products per lane, added up
// in double from there on. Rows and columns beyond `count` repeat the last one and are not written.
LMC_REGISTER void inner_products(const Column* u, int64_t count, int64_t row, int64_t column, double* out) {
    const float *a[tile_rows], *b[tile_columns];
    for (int i = 0; i < tile_rows; ++i) a[i] = u[std::min(row + i, count - 1)].block.x;
    for (int j = 0; j < tile_columns; ++j) b[j] = u[std::min(column + j, count - 1)].block.x;
    Register sums[tile_rows][tile_columns];
    for (auto& line : sums)
        for (Register& sum : line) sum = broadcast(0.0f);
    for (int at = 0; at < block_size; at += lanes) {
        Register y[tile_columns];
        for (int j = 0; j < tile_columns; ++j) y[j] = load(b[j] + at);
        for (int i = 0; i < tile_rows; ++i) {
            const Register x = load(a[i] + at);
            for (int j = 0; j < tile_columns; ++j) sums[i][j] = multiply_add(x, y[j], sums[i][j]);
        }
    }
    for (int i = 0; i < tile_rows && row + i < count; ++i)
        for (int j = 0; j < tile_columns && column + j < count; ++j)
            out[(row + i) * count + column + j] += sum_of_lanes(sums[i][j]);
}

}  // namespace

void row_squares(const std::vector<EncodedVector>& rows, int64_t n, int threads, double* chunk_squares) {
    const int64_t chunks = (n + chunk_size - 1) / chunk_size;
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        for (size_t row = 0; row < rows.size(); ++row) {
            DoubleSum squares;
            for_each_block_of(begin, end, [&](int64_t block, int64_t, int count) __attribute__((always_inline)) {
                Block x;
                decode_block(rows[row].payload, rows[row].scales, rows[row].format, block, count, x);
                squares.add_squares(x);
            });
            chunk_squares[int64_t(row) * chunks + chunk] = squares.value();
        }
    });
}

void gram(const std::vector<EncodedVector>& vectors, int64_t n, int64_t strips, int threads, double* strip_sums) {
    const int64_t count = int64_t(vectors.size()), blocks = (n + block_size - 1) / block_size;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && strips > 1)
    for (int64_t strip = 0; strip < strips; ++strip) {
        std::vector<Column> u(static_cast<size_t>(count));
        double* out = strip_sums + strip * count * count;
        for (int64_t block = strip * blocks / strips; block < (strip + 1) * blocks / strips; ++block) {
            const int64_t rest = n - block * block_size;
            for (int64_t k = 0; k < count; ++k)
                decode_block(vectors[k].payload, vectors[k].scales, vectors[k].format, block,
                             int(rest < block_size ? rest : block_size), u[k].block);
            for (int64_t row = 0; row < count; row += tile_rows)
                for (int64_t column = 0; column < row + tile_rows && column < count; column += tile_columns)
                    inner_products(u.data(), count, row, column, out);
        }
    }
}

void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,
             const float* coefficients, int threads) {
    const int64_t count = int64_t(vectors.size());
    for_each_chunk(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        std::vector<Block> sums(static_cast<size_t>(requests));
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int size) __attribute__((always_inline)) {
            Block x;
            for (int64_t r = 0; r < requests; ++r) load_block(out + r * n + at, size, sums[r]);
            for (int64_t k = 0; k < count; ++k) {
                decode_block(vectors[k].payload, vectors[k].scales, vectors[k].format, block, size, x);
                for (int64_t r = 0; r < requests; ++r) {
                    const Pack c(coefficients[r * count + k]);
                    for (int i = 0; i < block_size; i += Pack::width)
                        store_pack(sums[r].x + i, fma(c, load_pack(x.x + i), load_pack(sums[r].x + i)));
                }
            }
            for (int64_t r = 0; r < requests; ++r)
                std::memcpy(out + r * n + at, sums[r].x, size_t(size) * sizeof(float));
        });
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
