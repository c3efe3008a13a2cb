// The tile of panels.h for one instruction set, which the macros of the file that includes this describe:
//
// TARGET, the attribute of its functions; NAMED(name), a name with its suffix; VECTOR, of LANES numbers of the type
// NUMBER; ZERO, LOAD, STORE, ADD, BROADCAST, and MULTIPLY_ADD(x, weights, sums). `widen` loads the weights of LANES
// outputs.

template <int rows, class Weight>
TARGET void NAMED(tile)(const NUMBER* x, const Weight* weights, int64_t inputs, NUMBER* sums, bool first,
                        const char* ahead, int64_t ahead_step) {
    VECTOR total[rows][2];
    for (int row = 0; row < rows; ++row) {
        for (int half = 0; half < 2; ++half) {
            total[row][half] = ZERO();
        }
    }
    for (int64_t input = 0; input < inputs; ++input) {
        __builtin_prefetch(ahead);
        ahead += ahead_step;
        const VECTOR left = NAMED(widen)(weights), right = NAMED(widen)(weights + LANES);
        weights += 2 * LANES;
        for (int row = 0; row < rows; ++row) {
            const VECTOR value = BROADCAST(*x++);
            total[row][0] = MULTIPLY_ADD(value, left, total[row][0]);
            total[row][1] = MULTIPLY_ADD(value, right, total[row][1]);
        }
    }
    for (int row = 0; row < rows; ++row) {
        for (int half = 0; half < 2; ++half) {
            NUMBER* to = sums + (2 * row + half) * LANES;
            STORE(to, first ? total[row][half] : ADD(LOAD(to), total[row][half]));
        }
    }
}

template <class Weight, size_t... rows>
constexpr std::array<prior_embed::Tile<NUMBER, Weight>, sizeof...(rows)> NAMED(tiles)(std::index_sequence<rows...>) {
    return {NAMED(tile)<rows + 1, Weight>...};
}
