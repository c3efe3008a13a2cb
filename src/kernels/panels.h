// Products on weights in panels: a panel has the weights of some outputs, input after input. A tile is a panel times
// some rows, whose sums stay in registers. The sums of a row are always in the same order, whatever rows are beside it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace prior_embed {

// sums (rows, width) += x (inputs, rows) . weights (inputs, width), or = for the first of the inputs. Meanwhile what
// comes next, `ahead`, is fetched: `ahead_step` bytes for each input.
template <class Number, class Weight>
using Tile = void (*)(const Number* x, const Weight* weights, int64_t inputs, Number* sums, bool first,
                      const char* ahead, int64_t ahead_step);

// The tiles of an instruction set, by their number of rows less one, as many as there are registers for their sums.
template <class Number, class Weight>
struct TileSet {
    const Tile<Number, Weight>* tiles;
    int64_t most_rows;
};

// x (rows, inputs) times weights (panels, inputs, width), of which the last panel may have fewer outputs.
template <class Number, class Weight>
struct Product {
    int64_t rows, inputs, outputs, width;
    const Number* x;
    const Weight* weights;
};

// Rows that are multiplied together: with so many inputs at a time, they stay in the second cache.
constexpr int64_t block_rows = 96;
// Rows worth a thread: with fewer, arranging them takes longer than it saves.
constexpr int64_t least_rows = 24;
// Inputs that are multiplied before the next panel: their share of one, 16 to 64 KB, stays in the cache for all tiles.
constexpr int64_t block_inputs = 512;
// Outputs that are multiplied with a block of rows and inputs before the next inputs.
constexpr int64_t chunk_outputs = 256;

// `count` rows in tiles of about the same size.
struct Tiles {
    int64_t count, tiles;

    Tiles(int64_t count, int64_t most) : count(count), tiles((count + most - 1) / most) {}

    int64_t first_row(int64_t tile) const {
        return count * tile / tiles;
    }
};

// Some rows of x, tile by tile: the rows of a tile side by side, input after input, in blocks of inputs.
template <class Number>
void arrange(const Number* x, const Tiles& tiles, int64_t inputs, Number* to) {
    for (int64_t start = 0; start < inputs; start += block_inputs) {
        const int64_t size = std::min(block_inputs, inputs - start);
        for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
            const int64_t first = tiles.first_row(tile), rows = tiles.first_row(tile + 1) - first;
            for (int64_t input = 0; input < size; ++input) {
                for (int64_t row = 0; row < rows; ++row) {
                    *to++ = x[(first + row) * inputs + start + input];
                }
            }
        }
    }
}

// Panels from `begin` to `end` of the product of `count` rows from `first` on.
template <class Number, class Weight, class Emit>
void multiply_block(const Product<Number, Weight>& product, const TileSet<Number, Weight>& set, int64_t first,
                    int64_t count, int64_t begin, int64_t end, const Emit& emit) {
    const int64_t inputs = product.inputs, width = product.width;
    const int64_t bytes = width * sizeof(Weight);
    const Tiles tiles(count, set.most_rows);
    const std::unique_ptr<Number[]> x(new Number[count * inputs]);
    arrange(product.x + first * inputs, tiles, inputs, x.get());
    // One tile reads each weight once, in the order in which they are stored.
    const int64_t chunk = tiles.tiles == 1 ? 1 : chunk_outputs / width;
    const std::unique_ptr<Number[]> sums(new Number[chunk * width * count]);
    for (int64_t panel = begin; panel < end; panel += chunk) {
        const int64_t panels = std::min(chunk, end - panel);
        for (int64_t start = 0; start < inputs; start += block_inputs) {
            const int64_t size = std::min(block_inputs, inputs - start);
            for (int64_t place = 0; place < panels; ++place) {
                const Weight* from = product.weights + ((panel + place) * inputs + start) * width;
                // What the next round reads. Each tile fetches its part.
                const bool is_last = place + 1 == panels;
                const int64_t next = is_last ? (start + size < inputs ? panel : panel + panels) : panel + place + 1;
                const int64_t next_start = is_last ? (start + size) % inputs : start;
                const char* ahead = reinterpret_cast<const char*>(
                    next < end ? product.weights + (next * inputs + next_start) * width : from);
                for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
                    const int64_t row = tiles.first_row(tile), rows = tiles.first_row(tile + 1) - row;
                    set.tiles[rows - 1](x.get() + start * count + row * size, from, size,
                                        sums.get() + (place * count + row) * width, start == 0,
                                        ahead + bytes * size * tile / tiles.tiles, bytes / tiles.tiles);
                }
            }
        }
        for (int64_t row = 0; row < count; ++row) {
            for (int64_t place = 0; place < panels; ++place) {
                const int64_t output = (panel + place) * width, size = std::min(width, product.outputs - output);
                emit(first + row, output, size, sums.get() + (place * count + row) * width);
            }
        }
    }
}

// Calls `emit(row, output, size, sums)` with the sums of `size` outputs of a row from `output` on, from several
// threads.
template <class Number, class Weight, class Emit>
void multiply(const Product<Number, Weight>& product, const TileSet<Number, Weight>& set, const Emit& emit) {
    if (product.rows == 0) {
        return;
    }
    const int64_t panels = (product.outputs + product.width - 1) / product.width;
    const int64_t threads = at::get_num_threads();
    int64_t blocks = (product.rows + block_rows - 1) / block_rows;
    if (product.rows >= threads * least_rows) {
        blocks = (blocks + threads - 1) / threads * threads;
    } else {
        // Threads that have no rows of their own share the panels.
        while (threads % blocks != 0) {
            ++blocks;
        }
    }
    const int64_t groups = std::min(panels, std::max<int64_t>(1, threads / blocks));
    at::parallel_for(0, blocks * groups, 1, [&](int64_t task, int64_t end) {
        for (; task < end; ++task) {
            const int64_t block = task / groups, group = task % groups;
            const int64_t first = product.rows * block / blocks, last = product.rows * (block + 1) / blocks;
            const int64_t begin = panels * group / groups, stop = panels * (group + 1) / groups;
            multiply_block(product, set, first, last - first, begin, stop, emit);
        }
    });
}

// Packs a weight (outputs, inputs) into (panels, inputs, width).
template <class Weight>
void pack_panels(const Weight* from, int64_t outputs, int64_t inputs, int64_t width, Weight* to) {
    at::parallel_for(0, (outputs + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            Weight* target = to + panel * inputs * width;
            // A few inputs at a time, so that whole cache lines of the rows are read.
            for (int64_t first = 0; first < inputs; first += 32) {
                const int64_t last = std::min(inputs, first + 32);
                for (int64_t place = 0; place < width; ++place) {
                    const int64_t output = panel * width + place;
                    for (int64_t input = first; input < last; ++input) {
                        target[input * width + place] = output < outputs ? from[output * inputs + input] : Weight{};
                    }
                }
            }
        }
    });
}

}  // namespace prior_embed
