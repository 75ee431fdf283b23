//%# Copies of boxes between a tensor of `rank` dimensions and shared memory, included by hopper.h once for each rank.
//%# `coordinates` are the parameters that say where the box begins, `places` their operands in the assembly.

/* A box of a tensor of ${rank} dimensions that begins at these coordinates, the first being of the dimension whose
 * elements are neighbours: along that one, at a multiple of 16 bytes, or the GPU stops with an "illegal instruction". What
 * lies outside of the tensor is read as 0 and counts as bytes. By one thread. */
static __device__ __forceinline__ void tensor_load(u32 shared, const tensor_map *map, u32 barrier, ${coordinates})
{
  asm volatile("cp.async.bulk.tensor.${rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               " [%${rank}], [%${rank + 1}, {${places}}], [%${rank + 2}];" ::
//% for i in 0 .. rank
               "r"(c${i}),
//% end
               "r"(shared), "l"(map), "r"(barrier)
               : "memory");
}

/* The same, to this address in each block of the cluster whose bit is set in `mask`, and to the barrier in each. */
static __device__ __forceinline__ void tensor_load_multicast(u32 shared, const tensor_map *map, u32 barrier,
                                                             unsigned short mask, ${coordinates})
{
  asm volatile(
      "cp.async.bulk.tensor.${rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%${rank}], [%${rank + 1}, {${places}}], [%${rank + 2}], %${rank + 3};" ::
//% for i in 0 .. rank
               "r"(c${i}),
//% end
               "r"(shared), "l"(map), "r"(barrier), "h"(mask)
               : "memory");
}

/* From shared memory to the tensor; part of the group that bulk_commit closes. What lies outside is not written, but for
 * what is left of 16 bytes behind the end of a row: where rows are no multiple of 16 bytes, these must belong to it. */
static __device__ __forceinline__ void tensor_store(const tensor_map *map, u32 shared, ${coordinates})
{
  asm volatile("cp.async.bulk.tensor.${rank}d.global.shared::cta.bulk_group [%${rank + 1}, {${places}}], [%${rank}];" ::
//% for i in 0 .. rank
               "r"(c${i}),
//% end
               "r"(shared), "l"(map)
               : "memory");
}

/* Adds to the tensor, in the type of its elements. */
static __device__ __forceinline__ void tensor_reduce_add(const tensor_map *map, u32 shared, ${coordinates})
{
  asm volatile("cp.reduce.async.bulk.tensor.${rank}d.global.shared::cta.add.bulk_group"
               " [%${rank + 1}, {${places}}], [%${rank}];" ::
//% for i in 0 .. rank
               "r"(c${i}),
//% end
               "r"(shared), "l"(map)
               : "memory");
}
