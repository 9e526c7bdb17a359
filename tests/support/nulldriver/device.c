/* GPUs, contexts, memory; how calls are counted, made to fail and found. */
#define _GNU_SOURCE
#include "null.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GPUS 8
#define SPACE (1ul << 40) /* device addresses: reserved, never accessible, never used twice */
#define POISON 0xff       /* NaN as float16 and float32 */
#define GRAIN 512ul       /* cuMemAlloc aligns to 256 at least */
#define STACK 64

struct Block {
    Address address;
    size_t size;
    char *bytes;
    enum Kind kind;
    struct Context *context;
    struct Block *next;
};

struct GPU {
    char name[128];
    int major, minor;
    size_t memory, used, peak;
    struct Context primary;
};

static struct GPU gpus[GPUS];
static int n_gpus, cuda_version = 13000;
static bool initialised;
static __thread struct Context *stack[STACK];
static __thread int depth;
static struct Block *blocks;
static struct Object *objects;
static char *space;
static size_t space_used, live[KINDS], left[KINDS];

/* ---- calls ---- */

static pthread_mutex_t lock;
static char *calls, violations[4096];
static size_t calls_size, calls_room;
static struct {
    char function[64];
    long countdown;
    int status;
    bool sticky;
} failure;

int thread_id(void) {
    static int threads;
    static __thread int mine;
    return mine ? mine : (mine = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED));
}

struct Context *current_context(void) { return depth ? stack[depth - 1] : NULL; }

int enter(const char *function, int rule) {
    pthread_mutex_lock(&lock);
    size_t length = strlen(function);
    struct Context *context = current_context();
    if (calls_size + length + 2 > calls_room)
        calls = realloc(calls, calls_room = 2 * calls_room + 4096);
    calls_size += sprintf(calls + calls_size, "%s\n", function);
    if (failure.countdown && (!*failure.function || !strcmp(failure.function, function))) {
        if (!--failure.countdown) {
            if (context && failure.sticky)
                context->fault = failure.status;
            return failure.status;
        }
    }
    if (rule & CONTEXT && !context)
        return INVALID_CONTEXT;
    if (rule & CONTEXT && !context->references)
        return CONTEXT_IS_DESTROYED;
    if (rule & CONTEXT && context->fault)
        return context->fault;
    return rule & UNSAFE && capture_forbids() ? CAPTURE_UNSUPPORTED : OK;
}

int leave(int status) {
    pthread_mutex_unlock(&lock);
    return status;
}

void violation(struct Context *context, const char *format, ...) {
    size_t used = strlen(violations);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(violations + used, sizeof violations - used - 1, format, arguments);
    va_end(arguments);
    strcat(violations, "\n");
    context->fault = ILLEGAL_ADDRESS;
}

/* ---- objects ---- */

void *create(enum Kind kind, size_t size) {
    struct Object *made = calloc(1, size);
    *made = (struct Object){kind, true, current_context(), objects};
    live[kind]++;
    return objects = made;
}

void *object(const void *handle, enum Kind kind) {
    for (struct Object *each = objects; each; each = each->next)
        if (each == handle)
            return each->alive && each->kind == kind ? each : NULL;
    return NULL;
}

void destroy(void *handle) {
    struct Object *object = handle;
    object->alive = false;
    live[object->kind]--;
}

/* ---- memory ---- */

bool on_device(Address address) { return address >= (Address)space && address < (Address)space + SPACE; }

static struct Block **block_at(Address address) {
    struct Block **place = &blocks;
    while (*place && (address < (*place)->address || address >= (*place)->address + (*place)->size))
        place = &(*place)->next;
    return place;
}

void *reach(struct Context *context, Address address, size_t size, enum Kind kind) {
    struct Block *block = *block_at(address);
    if (block && block->kind == kind && address + size <= block->address + block->size)
        return block->bytes + (address - block->address);
    const char *wrong = !block ? "nobody's" : block->kind != kind ? "of the other side" : "beyond the end of a block";
    violation(context, "%zu bytes at %#lx are %s", size, (unsigned long)address, wrong);
    return NULL;
}

static int allocate(Address *address, size_t size, enum Kind kind) {
    struct Context *context = current_context();
    struct GPU *gpu = &gpus[context->device];
    if (!size)
        return INVALID_VALUE;
    if (kind == DEVICE_MEMORY && size > gpu->memory - gpu->used)
        return OUT_OF_MEMORY;
    struct Block *block = malloc(sizeof *block);
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(bytes, POISON, size);
    *block = (struct Block){(Address)bytes, size, bytes, kind, context, blocks};
    blocks = block;
    if (kind == DEVICE_MEMORY) {
        block->address = (Address)space + space_used;
        space_used += (size + GRAIN) / GRAIN * GRAIN + GRAIN; /* a gap, so that one block's end is not another's start */
        gpu->used += size;
        gpu->peak = gpu->used > gpu->peak ? gpu->used : gpu->peak;
    }
    live[kind] += size;
    *address = block->address;
    return OK;
}

static int release(Address address, enum Kind kind) {
    struct Block **place = block_at(address), *block = *place;
    if (!block || block->address != address || block->kind != kind)
        return INVALID_VALUE;
    if (kind == DEVICE_MEMORY)
        gpus[block->context->device].used -= block->size;
    live[kind] -= block->size;
    munmap(block->bytes, block->size);
    *place = block->next;
    free(block);
    return OK;
}

API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER("cuMemGetInfo", CONTEXT);
    struct GPU *gpu = &gpus[current_context()->device];
    *total = gpu->memory;
    *free = gpu->memory - gpu->used;
    return leave(OK);
}

API int cuMemAlloc_v2(Address *address, size_t size) {
    ENTER("cuMemAlloc", CONTEXT | UNSAFE);
    return leave(allocate(address, size, DEVICE_MEMORY));
}

/* Does not wait for what is enqueued: the documentation does not promise it. Such work then faults. */
API int cuMemFree_v2(Address address) {
    ENTER("cuMemFree", CONTEXT | UNSAFE);
    return leave(release(address, DEVICE_MEMORY));
}

API int cuMemAllocAsync(Address *address, size_t size, void *stream) {
    ENTER("cuMemAllocAsync", CONTEXT | UNSAFE);
    (void)stream;
    return leave(getenv("NULL_NO_POOLS") ? NOT_SUPPORTED : allocate(address, size, DEVICE_MEMORY));
}

API int cuMemFreeAsync(Address address, void *stream) { /* of memory that nothing enqueued uses */
    ENTER("cuMemFreeAsync", CONTEXT | UNSAFE);
    (void)stream;
    return leave(release(address, DEVICE_MEMORY));
}

API int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    ENTER("cuMemHostAlloc", CONTEXT | UNSAFE);
    return leave(flags ? INVALID_VALUE : allocate((Address *)memory, size, PINNED_MEMORY));
}

API int cuMemFreeHost(void *memory) {
    ENTER("cuMemFreeHost", CONTEXT | UNSAFE);
    return leave(release((Address)memory, PINNED_MEMORY));
}

/* ---- contexts ---- */

/* The last release of a primary context destroys it with everything in it. */
static void destroy_context(struct Context *context) {
    size_t before[KINDS];
    memcpy(before, live, sizeof before);
    forget_streams(context);
    for (struct Object *each = objects; each; each = each->next)
        if (each->alive && each->context == context)
            destroy(each);
    for (struct Block *block = blocks, *next; block; block = next) {
        next = block->next;
        if (block->context == context)
            release(block->address, block->kind);
    }
    for (int kind = 0; kind < KINDS; kind++)
        left[kind] += before[kind] - live[kind];
    context->fault = OK; /* one that is retained again is a new one */
}

API int cuDevicePrimaryCtxRetain(struct Context **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain", ANYWHERE);
    if (device < 0 || device >= n_gpus)
        return leave(INVALID_DEVICE);
    *context = &gpus[device].primary;
    (*context)->references++;
    live[RETAINED]++;
    return leave((*context)->fault);
}

API int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER("cuDevicePrimaryCtxRelease", ANYWHERE);
    struct Context *context = &gpus[device].primary;
    if (!context->references)
        return leave(INVALID_CONTEXT);
    live[RETAINED]--;
    if (!--context->references)
        destroy_context(context);
    return leave(OK);
}

API int cuCtxPushCurrent_v2(struct Context *context) {
    ENTER("cuCtxPushCurrent", ANYWHERE);
    if (!context || depth == STACK)
        return leave(INVALID_VALUE);
    stack[depth++] = context;
    return leave(OK);
}

API int cuCtxPopCurrent_v2(struct Context **context) {
    ENTER("cuCtxPopCurrent", ANYWHERE);
    if (!depth)
        return leave(INVALID_CONTEXT);
    *context = stack[--depth];
    return leave(OK);
}

API int cuCtxGetCurrent(struct Context **context) {
    ENTER("cuCtxGetCurrent", ANYWHERE);
    *context = current_context();
    return leave(OK);
}

/* ---- GPUs ---- */

API int cuInit(unsigned flags) {
    ENTER("cuInit", ANYWHERE);
    initialised = n_gpus > 0;
    return leave(flags ? INVALID_VALUE : initialised ? OK : NO_DEVICE);
}

API int cuDriverGetVersion(int *version) {
    ENTER("cuDriverGetVersion", ANYWHERE);
    *version = cuda_version;
    return leave(OK);
}

API int cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount", ANYWHERE);
    *count = n_gpus;
    return leave(initialised ? OK : NOT_INITIALIZED);
}

API int cuDeviceGet(int *device, int ordinal) {
    ENTER("cuDeviceGet", ANYWHERE);
    *device = ordinal;
    return leave(!initialised ? NOT_INITIALIZED : ordinal < 0 || ordinal >= n_gpus ? INVALID_DEVICE : OK);
}

API int cuDeviceGetName(char *name, int size, int device) {
    ENTER("cuDeviceGetName", ANYWHERE);
    snprintf(name, size, "%s", gpus[device].name);
    return leave(OK);
}

API int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    ENTER("cuDeviceGetUuid", ANYWHERE);
    memset(uuid, 0x10 * (device + 1), 16); /* GPU-10101010-1010-..., GPU-20202020-2020-... */
    return leave(OK);
}

API int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    ENTER("cuDeviceTotalMem", ANYWHERE);
    *bytes = gpus[device].memory;
    return leave(OK);
}

API int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER("cuDeviceGetAttribute", ANYWHERE);
    int limit = getenv("NULL_TIME_LIMIT") != NULL; /* CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT is 17 */
    *value = attribute == 75 ? gpus[device].major : attribute == 76 ? gpus[device].minor : attribute == 17 ? limit : 0;
    return leave(OK);
}

/* ---- names ---- */

static const struct {
    int status;
    const char *text;
} TEXTS[] = {
    {OK, "no error"},
    {INVALID_VALUE, "invalid argument"},
    {OUT_OF_MEMORY, "out of memory"},
    {NO_DEVICE, "no CUDA-capable device is detected"},
    {INVALID_CONTEXT, "invalid device context"},
    {INVALID_HANDLE, "invalid resource handle"},
    {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {719, "unspecified launch failure"},
    {NOT_SUPPORTED, "operation not supported"},
    {803, "system has unsupported display driver / cuda driver combination"},
    {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
    {CAPTURE_UNJOINED, "capturing stream has unjoined work"},
};

API int cuGetErrorString(int status, const char **text) {
    *text = NULL;
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++)
        if (TEXTS[i].status == status)
            *text = TEXTS[i].text;
    return *text ? OK : INVALID_VALUE;
}

/* Callers name a function without its version. NVIDIA's own CUDA runtime also asks the driver for proof of itself, by
 * cuGetExportTable; there is none here, so it refuses this driver, as it should. */
API int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    (void)version, (void)flags;
    char versioned[128];
    static void *self;
    Dl_info info;
    if (!self && dladdr((void *)cuGetProcAddress_v2, &info))
        self = dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_LAZY);
    snprintf(versioned, sizeof versioned, "%s_v2", name);
    *function = dlsym(self, versioned) ? dlsym(self, versioned) : dlsym(self, name);
    if (found)
        *found = !*function; /* CU_GET_PROC_ADDRESS_SUCCESS or SYMBOL_NOT_FOUND */
    return *function ? OK : NOT_FOUND;
}

/* ---- for tests ---- */

/* NULL_GPUS is "name,major.minor,bytes;..." and NULL_CUDA the version that the driver answers. NULL_TIME_LIMIT gives every
 * GPU a watchdog, NULL_NO_POOLS refuses memory in the order of a stream; these two are read anew each time. */
__attribute__((constructor)) static void start(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE); /* work that runs under it may call back */
    pthread_mutex_init(&lock, &attributes);
    space = mmap(NULL, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const char *text = getenv("NULL_GPUS"), *version = getenv("NULL_CUDA");
    if (version)
        cuda_version = atoi(version);
    for (text = text ? text : "NVIDIA GeForce RTX 4090,8.9,24000000000"; text && *text; n_gpus++) {
        struct GPU *gpu = &gpus[n_gpus];
        sscanf(text, "%127[^,],%d.%d,%zu", gpu->name, &gpu->major, &gpu->minor, &gpu->memory);
        gpu->primary = (struct Context){.device = n_gpus, .primary = true};
        text = strchr(text, ';') ? strchr(text, ';') + 1 : NULL;
    }
}

/* Makes a call of ``function`` ("": of any) fail, the ``countdown``-th from now (0: none); ``sticky``: it is a fault, after
 * which all that needs the context fails. Returns what was left of the countdown before: 0 if that failure happened. */
API long null_fail(const char *function, long countdown, int status, int sticky) {
    long before = failure.countdown;
    snprintf(failure.function, sizeof failure.function, "%s", function);
    failure.countdown = countdown, failure.status = status, failure.sticky = sticky;
    return before;
}

/* Counts by Kind: what is alive, and what was alive when its context was destroyed. */
API void null_live(size_t counts[2 * KINDS]) {
    memcpy(counts, live, sizeof live);
    memcpy(counts + KINDS, left, sizeof left);
}

/* Sets the memory of a GPU and returns the most that was in use since the call before. */
API size_t null_memory(int device, size_t bytes) {
    size_t peak = gpus[device].peak;
    gpus[device].memory = bytes;
    gpus[device].peak = gpus[device].used;
    return peak;
}

/* The calls, or what a GPU would have punished, a line each, since the call before. */
API const char *null_calls(void) {
    calls_size = 0;
    return calls ? calls : "";
}

API const char *null_violations(void) {
    static char taken[sizeof violations];
    strcpy(taken, violations);
    *violations = 0;
    return taken;
}

/* A context of the caller's own, as from cuCtxCreate. */
API struct Context *null_context(int device) {
    struct Context *context = calloc(1, sizeof *context);
    *context = (struct Context){.device = device, .references = 1};
    return context;
}

/* Forgets faults, this thread's contexts and everything that is alive. */
API void null_reset(void) {
    null_fail("", 0, 0, 0);
    depth = 0;
    for (int i = 0; i < n_gpus; i++) {
        destroy_context(&gpus[i].primary);
        live[RETAINED] -= gpus[i].primary.references;
        gpus[i].primary = (struct Context){.device = i, .primary = true};
    }
    memset(left, 0, sizeof left);
    null_violations();
    null_calls();
}
