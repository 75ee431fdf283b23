/* How tensor cores add, and conversions of 16-bit types. Nothing here knows threads. */
#pragma once

#include <cstdint>

namespace emu {

enum { TYPE_FP16 = 0, TYPE_BF16 = 1, TYPE_FP32 = 2 };

float to_float(uint16_t bits, int type);
uint16_t from_float(float x, int type); /* to the nearest, ties to even */

/* c += a b for a of 16 x 16, b of 16 x 8 (b[k][n]), c of 16 x 8, as `model` (machine.h) adds. */
void tensor_core_multiply(float c[16][8], const uint16_t a[16][16], const uint16_t b[16][8], int type, int model);

} // namespace emu
