/*
 * The kernels of this process: a table from (problem, bucket, device) to a kernel ready to launch.
 *
 * Reading takes no lock: slots are only ever added, at the head of their chain, and are complete before they
 * can be seen; a slot's kernel appears in it with one atomic store. Nothing is removed: there is one slot
 * for each kind of call that the program makes.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { CHAINS = 1024 };

static fa_slot *_Atomic chains[CHAINS];
static fa_ready *loaded_kernels; /* under the lock */

static size_t chain_of(const fa_table_key *key) {
  uint64_t hash = key->problem;
  const int64_t bucket[] = {key->bucket.batch, key->bucket.heads_q, key->bucket.heads_kv, key->bucket.seqlen_q,
                            key->bucket.seqlen_k};
  for (int i = 0; i < 5; i++)
    hash = (hash ^ (uint64_t)bucket[i]) * UINT64_C(0x9E3779B97F4A7C15);
  return (size_t)(hash >> 54); /* the upper 10 bits are the well mixed ones */
}
_Static_assert(CHAINS == 1 << 10, "chain_of takes 10 bits");

static bool same_key(const fa_table_key *a, const fa_table_key *b) {
  return a->problem == b->problem && a->bucket.seqlen_q == b->bucket.seqlen_q &&
         a->bucket.seqlen_k == b->bucket.seqlen_k && a->bucket.heads_q == b->bucket.heads_q &&
         a->bucket.heads_kv == b->bucket.heads_kv && a->bucket.batch == b->bucket.batch;
}

static fa_slot *find(const fa_table_key *key) {
  fa_slot *slot = atomic_load_explicit(&chains[chain_of(key)], memory_order_acquire);
  while (slot && !same_key(&slot->key, key))
    slot = slot->next;
  return slot;
}

const fa_ready *fa_table_find(const fa_table_key *key) {
  fa_slot *slot = find(key);
  return slot ? atomic_load_explicit(&slot->ready, memory_order_acquire) : NULL;
}

fa_slot *fa_table_slot(const fa_table_key *key) {
  fa_slot *slot = find(key);
  if (slot)
    return slot;
  slot = calloc(1, sizeof *slot);
  if (!slot)
    return NULL;
  slot->key = *key;
  fa_slot *_Atomic *chain = &chains[chain_of(key)];
  slot->next = atomic_load_explicit(chain, memory_order_relaxed);
  atomic_store_explicit(chain, slot, memory_order_release);
  return slot;
}

void fa_table_forget(void) {
  for (int i = 0; i < CHAINS; i++)
    for (fa_slot *slot = atomic_load_explicit(&chains[i], memory_order_acquire); slot; slot = slot->next)
      atomic_store_explicit(&slot->ready, NULL, memory_order_release);
}

const fa_ready *fa_find_loaded(const fa_device *device, const char *kernel_hex) {
  fa_lock();
  const fa_ready *found = loaded_kernels;
  while (found && !(found->device == device && strcmp(found->kernel_hex, kernel_hex) == 0))
    found = found->next;
  fa_unlock();
  return found;
}

/* `b` as a call has it. The kernel may be more precise than the call asks for, and repeat its bits where that is not
 * asked for. Its target is the call's: families add the products of a score in different orders in fp32, and backward
 * must do it as forward did. */
static bool same_problem(const fa_problem *a, const fa_problem *b) {
  return a->op == b->op && a->dtype == b->dtype && a->precision <= b->precision && a->head_dim == b->head_dim &&
         a->head_dim_v == b->head_dim_v && a->is_causal == b->is_causal && a->deterministic >= b->deterministic &&
         strcmp(a->target, b->target) == 0;
}

const fa_ready *fa_find_loaded_for(const fa_device *device, const fa_problem *problem) {
  fa_lock();
  const fa_ready *found = loaded_kernels;
  while (found && !(found->device == device && same_problem(&found->problem, problem)))
    found = found->next;
  fa_unlock();
  return found;
}

fa_status fa_make_ready(const fa_device *device, const fa_problem *problem, const fa_config *config,
                        const char *kernel_hex, const fa_loaded *loaded, const fa_ready **ready, char *message) {
  fa_ready *made = calloc(1, sizeof *made);
  if (!made)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes for a kernel", sizeof *made);
  made->device = device;
  made->problem = *problem;
  made->config = *config;
  made->loaded = *loaded;
  memcpy(made->kernel_hex, kernel_hex, sizeof made->kernel_hex);
  if (fa_describe(problem, config, &made->kernel, message, FA_MESSAGE_SIZE) != 0) {
    free(made);
    return FA_FAILED;
  }
  fa_count(&fa_counters.kernels_loaded);
  fa_lock();
  made->next = loaded_kernels;
  loaded_kernels = made;
  fa_unlock();
  *ready = made;
  return FA_OK;
}
