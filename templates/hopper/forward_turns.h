/* Consumers issue products in turn. Named barrier 0 is that of __syncthreads. */
static __device__ __forceinline__ void take_turn(int warpgroup)
{
  if constexpr (CONSUMERS > 1)
    named_barrier_wait(1 + warpgroup, 256);
}
static __device__ __forceinline__ void give_turn(int warpgroup)
{
  if constexpr (CONSUMERS > 1)
    named_barrier_arrive(1 + (warpgroup + 1) % CONSUMERS, 256);
}
