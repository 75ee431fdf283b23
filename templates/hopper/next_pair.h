  /* The next tile of this block of threads in a causal call: of `heads`, which `index`, and of a head's `blocks`, by what
   * there is to do, least first, which `block`. One with much to do is followed by that one of the same head which has so
   * little that all such pairs are alike. Of an odd number, that in the middle goes with the next head's: two heads are paired
   * at once, the second one's pairs the other way round, and behind the last of an odd number of heads comes nothing. A head's
   * single tile is not paired.
   *
   * These are statements of two functions (next_work). In a function of their own, ptxas spills 60 bytes of fp32 forward at
   * head dim 192. */
  const u32 heads_at_once = blocks % 2 && blocks > 1 ? 2 : 1, middle = blocks / 2;
  const u32 pairs = max(blocks * heads_at_once / 2, 1u), second = round % 2;
  u32 pair = round / 2 * gridDim.x + blockIdx.x;
  round += blocks > 1 ? 1 : 2;
  index = pair / pairs * heads_at_once;
  pair %= pairs;
  index += pair == middle ? second : pair > middle;
  if (index >= heads)
    return false;
  block = second ? pair : blocks - 1 - pair;
