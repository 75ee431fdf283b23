/*
 * PyTorch's half of a CUDA call: the current stream, memory from its allocator, and whether results must be
 * deterministic or may be less precise. Its CUDA functions live in libtorch_cuda.so, which a CPU-only PyTorch lacks:
 * they are looked up when the first CUDA tensor comes.
 */
#ifndef FLASH_ATTENTION_TORCH_CUDA_H
#define FLASH_ATTENTION_TORCH_CUDA_H

#include "python/operand.h"

/* The current stream of this thread on a device. */
void *torch_cuda_stream(int device_index, outcome *result);

/* Memory in the order of the current stream: what is released may be used by what comes later on that stream, without
 * waiting. Both are called by the same thread. NULL: there is none, or too much is taken at once. */
void *torch_cuda_allocate(int device_index, size_t bytes);
void torch_cuda_release(void *memory);

/* torch.are_deterministic_algorithms_enabled(), now. True if this PyTorch does not say. */
bool torch_is_deterministic(void);

/* Does PyTorch allow TF32 in products of fp32 matrices on a GPU, now? False if this PyTorch does not say. */
bool torch_allows_tf32(void);

#endif
