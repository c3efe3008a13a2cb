// The inner loop of panels.cpp for one instruction set, which the macros of the file that includes this describe:
//
// TARGET, the attribute of its functions; NAMED(name), a name with its suffix; VECTOR, of LANES numbers; ZERO, LOAD, STORE,
// ADD, FMA and BROADCAST. `widen` loads LANES weights as float32.

// sums (rows, 2 * LANES) += x (inputs, rows) . weights (inputs, 2 * LANES), or = for the first of the inputs. Meanwhile what
// comes next, `ahead`, is fetched: `ahead_step` bytes for each input.
template <int rows, class Weight>
TARGET void NAMED(tile)(const float* x, const Weight* weights, int64_t inputs, float* sums, bool first,
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
            total[row][0] = FMA(value, left, total[row][0]);
            total[row][1] = FMA(value, right, total[row][1]);
        }
    }
    for (int row = 0; row < rows; ++row) {
        for (int half = 0; half < 2; ++half) {
            float* to = sums + (2 * row + half) * LANES;
            STORE(to, first ? total[row][half] : ADD(LOAD(to), total[row][half]));
        }
    }
}
