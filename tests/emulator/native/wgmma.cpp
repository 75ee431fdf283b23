/*
 * Products of warpgroups (wgmma). Each of the four warps computes its 16 rows. From a product's beginning to the wait
 * for its group the accumulator's registers hold a NaN that nobody else has (POISON), the sum being kept aside, and
 * operands in shared memory are read at any moment: at once, at the wait, or at a random one in between. Products of a
 * warp are computed in their order.
 */
#include "matrix_descriptor.h"
#include "tensor_core.h"

#include <algorithm>
#include <cstring>

namespace emu {

enum : u32 { POISON = 0x7fc0dead };
enum { ROWS = 16, DEPTH = 16 };

/* What a lane asks for. */
struct Request {
  float *c;
  const u32 *a_registers; /* or nullptr */
  Asked asked;
  int type;
  uintptr_t pc;
};

/* --- operands ---------------------------------------------------------------------------------------------------- */

/* This warp's rows of A. */
static u32 a_address(const Warp &warp, const MatrixDescriptor &a, bool transposed, u32 row, u32 k) {
  return element_address(a, transposed, warp.index % WARPGROUP * ROWS + row, k);
}

/* Calls use(place) for each 16 bytes of both operands that this warp reads; a swizzle does not part them. */
template <class Use> static void for_each_chunk(const Warp &warp, const Product &product, Use use) {
  if (!product.from_registers) {
    MatrixDescriptor a = decode_matrix_descriptor(product.a, product.pc);
    u32 rows = product.trans_a ? DEPTH : ROWS, columns = product.trans_a ? ROWS : DEPTH;
    for (u32 i = 0; i < rows; i++)
      for (u32 j = 0; j < columns; j += 8)
        use(a_address(warp, a, product.trans_a, product.trans_a ? j : i, product.trans_a ? i : j));
  }
  MatrixDescriptor b = decode_matrix_descriptor(product.b, product.pc);
  u32 rows = product.trans_b ? (u32)DEPTH : product.c->n, columns = product.trans_b ? product.c->n : (u32)DEPTH;
  for (u32 i = 0; i < rows; i++)
    for (u32 j = 0; j < columns; j += 8)
      use(element_address(b, product.trans_b, product.trans_b ? j : i, product.trans_b ? i : j));
}

static SharedPlace chunk_place(const Warp &warp, u32 address, uintptr_t pc) {
  return shared_place(*warp.block, address, 16, "wgmma", pc);
}

static uint16_t element(const Warp &warp, u32 address, uintptr_t pc) {
  uint16_t bits;
  memcpy(&bits, shared_data(shared_place(*warp.block, address, 2, "wgmma", pc)), 2);
  return bits;
}

static void mark_reads(const Warp &warp, const Product &product, ReadState state) {
  for_each_chunk(warp, product, [&](u32 address) {
    mark_read(chunk_place(warp, address, product.pc), 16, state, AS_ONE, product.pc);
  });
}

void mark_product_reads(const Warp &warp) {
  for (const Product &product : warp.products)
    mark_reads(warp, product, UNDER_WAY);
}

/* --- computing --------------------------------------------------------------------------------------------------- */

/* Lane (g = l / 4, t = l % 4) holds of rows g and g + 8 the columns 2t, 2t + 1 of each 8. */
static float &accumulator(Accumulator &c, u32 row, u32 column) {
  u32 lane = row % 8 * 4 + column % 8 / 2;
  return c.value[lane * (c.n / 2) + column / 8 * 4 + row / 8 * 2 + column % 2];
}

static void read_a(const Warp &warp, const Product &product, uint16_t a[ROWS][DEPTH]) {
  MatrixDescriptor matrix = {};
  if (!product.from_registers)
    matrix = decode_matrix_descriptor(product.a, product.pc);
  for (u32 row = 0; row < ROWS; row++)
    for (u32 k = 0; k < DEPTH; k++) {
      const u32 *registers = product.a_registers[row % 8 * 4 + k % 8 / 2];
      if (product.from_registers)
        a[row][k] = (uint16_t)(registers[row / 8 + k / 8 * 2] >> 16 * (k % 2));
      else
        a[row][k] = element(warp, a_address(warp, matrix, product.trans_a, row, k), product.pc);
    }
}

static void compute(const Warp &warp, Product &product) {
  uint16_t a[ROWS][DEPTH], b[DEPTH][8];
  float c[ROWS][8];
  Accumulator &sums = *product.c;
  MatrixDescriptor matrix = decode_matrix_descriptor(product.b, product.pc);
  int model = machine.settings.model == MODEL_DOUBLE ? MODEL_DOUBLE : MODEL_HOPPER;
  read_a(warp, product, a);
  for (u32 column = 0; column < sums.n; column += 8) {
    for (u32 j = 0; j < 8; j++)
      for (u32 k = 0; k < DEPTH; k++)
        b[k][j] = element(warp, element_address(matrix, product.trans_b, column + j, k), product.pc);
    for (u32 i = 0; i < ROWS; i++)
      for (u32 j = 0; j < 8; j++)
        c[i][j] = product.accumulate ? accumulator(sums, i, column + j) : 0.0f;
    tensor_core_multiply(c, a, b, product.type, model);
    for (u32 i = 0; i < ROWS; i++)
      for (u32 j = 0; j < 8; j++)
        accumulator(sums, i, column + j) = c[i][j];
  }
  product.done = true;
  machine.products_open--;
}

static bool compute_next(Warp &warp) {
  for (Product &product : warp.products)
    if (!product.done) {
      compute(warp, product);
      return true;
    }
  return false;
}

bool products_pending() { return machine.products_open != 0; }

bool products_step() {
  std::vector<Warp *> open;
  for (Block *block : machine.blocks)
    for (Warp &warp : block->warp)
      if (!warp.products.empty() && !warp.products.back().done)
        open.push_back(&warp);
  return !open.empty() && compute_next(*open[random_below((u32)open.size())]);
}

/* --- accumulators ------------------------------------------------------------------------------------------------ */

static void poison(Accumulator &c) {
  u32 pattern = POISON;
  for (u32 l = 0; l < WARP; l++)
    for (u32 i = 0; i < c.n / 2; i++)
      memcpy(&c.c[l][i], &pattern, 4);
}

static void check_fenced(Warp &warp, const void *address, u32 lane, size_t bytes, const char *what, uintptr_t pc) {
  if (registers_fenced(warp.thread[lane], address, bytes))
    return;
  if (warp.thread[lane].fences)
    finding(pc, "wgmma: %s were used since the last wgmma_fence", what);
  else
    finding(pc, "wgmma: no wgmma_fence before it");
}

static std::shared_ptr<Accumulator> new_accumulator(Warp &warp, void **arguments, u32 n) {
  std::shared_ptr<Accumulator> c = std::make_shared<Accumulator>();
  const Request &first = *(Request *)arguments[0];
  c->n = n;
  c->products = 0;
  c->pc = first.pc;
  c->value.resize(WARP * n / 2);
  for (u32 l = 0; l < WARP; l++) {
    c->c[l] = ((Request *)arguments[l])->c;
    check_fenced(warp, c->c[l], l, n / 2 * sizeof(float), "registers of the accumulator", first.pc);
    memcpy(&c->value[l * n / 2], c->c[l], n / 2 * sizeof(float));
  }
  poison(*c);
  return c;
}

/* That of an earlier product that is under way, or a new one. */
static std::shared_ptr<Accumulator> find_accumulator(Warp &warp, void **arguments, u32 n) {
  const Request &first = *(Request *)arguments[0];
  for (Product &product : warp.products) {
    Accumulator &c = *product.c;
    if (c.c[0] == first.c && c.n == n)
      return product.c;
    if (first.c < c.c[0] + c.n / 2 && c.c[0] < first.c + n / 2)
      fatal(first.pc, "wgmma: its accumulator overlaps with that of another shape that is under way, begun at %s",
            at(product.pc).c_str());
  }
  return new_accumulator(warp, arguments, n);
}

static void give_back(Accumulator &c) {
  u32 pattern = POISON;
  for (u32 l = 0; l < WARP; l++)
    for (u32 i = 0; i < c.n / 2; i++)
      if (memcmp(&c.c[l][i], &pattern, 4)) {
        finding(c.pc, "wgmma: register %u of its accumulator was written while it was under way", i);
        l = WARP - 1;
        break;
      }
  for (u32 l = 0; l < WARP; l++)
    memcpy(c.c[l], &c.value[l * c.n / 2], c.n / 2 * sizeof(float));
}

/* --- instructions ------------------------------------------------------------------------------------------------ */

/* The four warps of a warpgroup must ask for the same. */
static void compare_with_others(Warp &warp, const Request &request) {
  std::vector<Asked> &asked = warp.block->asked[warp.index / WARPGROUP];
  if (warp.products_begun == asked.size())
    asked.push_back(request.asked);
  else if (!(asked[warp.products_begun] == request.asked))
    finding(request.pc, "wgmma: warps of a warpgroup ask for different products");
  else if (asked[warp.products_begun].pc != request.pc)
    finding(request.pc, "wgmma: another warp of the warpgroup is at another one, at %s; all must execute the same",
            at(asked[warp.products_begun].pc).c_str());
  warp.products_begun++;
}

static void check_place_of_warp(const Warp &warp, u32 mask, uintptr_t pc) {
  u32 first = warp.index / WARPGROUP * WARPGROUP;
  if (mask != 0xffffffffu || first + WARPGROUP > warp.block->num_warps)
    fatal(pc, "wgmma by a warpgroup that is not whole");
}

static void begin(Warp &warp, u32 mask, void **arguments) {
  const Request &first = *(Request *)arguments[0];
  check_place_of_warp(warp, mask, first.pc);
  for (u32 l = 1; l < WARP; l++)
    if (!(((Request *)arguments[l])->asked == first.asked))
      fatal(first.pc, "wgmma: lanes ask for different products");
  compare_with_others(warp, first);
  Product product = {};
  product.c = find_accumulator(warp, arguments, first.asked.n);
  product.c->products++;
  product.a = first.asked.a;
  product.b = first.asked.b;
  product.from_registers = first.asked.from_registers;
  product.trans_a = first.asked.trans_a;
  product.trans_b = first.asked.trans_b;
  product.accumulate = first.asked.accumulate;
  product.type = first.type;
  product.group = warp.product_group;
  product.pc = first.pc;
  for (u32 l = 0; l < WARP && product.from_registers; l++) {
    product.a_registers[l] = ((Request *)arguments[l])->a_registers;
    check_fenced(warp, product.a_registers[l], l, 16, "registers of A", first.pc);
  }
  for_each_chunk(warp, product, [&](u32 address) {
    touch_shared(chunk_place(warp, address, product.pc), 16, PRODUCT_READ, product.pc);
  });
  mark_reads(warp, product, UNDER_WAY);
  warp.products.push_back(product);
  machine.products_open++;
  bool at_once = machine.settings.timing == TIMING_RANDOM && random_below(3) == 0;
  if (at_once || machine.settings.timing == TIMING_EARLY)
    while (compute_next(warp)) {
    }
}

/* a_registers: nullptr where A lies in shared memory. */
extern "C" void emu_wgmma(float *c, const u32 *a_registers, u64 a, u64 b, int accumulate, int n, int trans_a,
                          int trans_b, int type) {
  static const char kind = 0;
  Request request = {c,
                     a_registers,
                     {a, b, (u32)n, a_registers != nullptr, trans_a != 0, trans_b != 0, accumulate != 0, EMU_PC},
                     type,
                     EMU_PC};
  meet_aligned("wgmma", &kind, &request, EMU_PC, begin);
}

static void fence(Warp &warp, u32, void **) {
  for (u32 l = 0; l < WARP; l++)
    if (warp.lanes >> l & 1)
      registers_fence(warp.thread[l]);
}

extern "C" void emu_wgmma_fence() {
  static const char kind = 0;
  meet_aligned("wgmma_fence", &kind, nullptr, EMU_PC, fence);
}

static void commit(Warp &warp, u32, void **) { warp.product_group++; }

extern "C" void emu_wgmma_commit() {
  static const char kind = 0;
  meet_aligned("wgmma_commit", &kind, nullptr, EMU_PC, commit);
}

static void wait(Warp &warp, u32, void **arguments) {
  u64 pending = (u64) * (int *)arguments[0];
  while (!warp.products.empty() && warp.products.front().group + pending < warp.product_group) {
    if (!warp.products.front().done)
      compute_next(warp);
    Product product = warp.products.front();
    warp.products.pop_front();
    mark_reads(warp, product, DONE);
    if (--product.c->products == 0)
      give_back(*product.c);
  }
  mark_open_reads(warp);
}

extern "C" void emu_wgmma_wait(int pending) {
  static const char kind = 0;
  meet_aligned("wgmma_wait", &kind, &pending, EMU_PC, wait);
}

/* --- the end ----------------------------------------------------------------------------------------------------- */

/* A warp whose last thread ends must have begun what the others of its warpgroup have. */
static void compare_counts(const Warp &warp) {
  const Block &block = *warp.block;
  u32 first = warp.index / WARPGROUP * WARPGROUP;
  for (u32 w = first; w < first + WARPGROUP && w < block.num_warps; w++) {
    const Warp &other = block.warp[w];
    if (!has_ended(warp) || !has_ended(other))
      return;
  }
  for (u32 w = first; w < first + WARPGROUP && w < block.num_warps; w++) {
    u64 mine = warp.products_begun, others = block.warp[w].products_begun;
    if (mine != others) /* where: the first that one of them has not */
      finding(block.asked[warp.index / WARPGROUP][std::min(mine, others)].pc,
              "wgmma: warp %u has begun %llu, warp %u of its warpgroup %llu, without this one", warp.index,
              (unsigned long long)mine, w, (unsigned long long)others);
  }
}

void products_at_exit(Thread &thread) {
  Warp &warp = *thread.warp;
  if (!warp.products.empty())
    finding(warp.products.front().pc, "a wgmma is under way when a thread of its warp ends");
  for (const Product &product : warp.products)
    machine.products_open -= !product.done;
  warp.products.clear();
  compare_counts(warp);
}

} // namespace emu
