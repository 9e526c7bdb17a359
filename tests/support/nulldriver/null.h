/* A CUDA driver without a GPU, for tests: memory, streams, capture, graphs and events of the driver API, no kernels.
 *
 * Written from NVIDIA's public documentation (CUDA Driver API, CUDA Programming Guide). The names that begin with cu are
 * the driver's; those that begin with null_ are for tests. Statuses and constants are those of cuda.h.
 */
#ifndef NULL_H
#define NULL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_WRONG_THREAD = 908,
};

typedef uint64_t Address; /* CUdeviceptr */

/* What can be left behind, in the order of null_live's counts. Memory is counted in bytes. */
enum Kind { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, GRAPH, EXEC, RETAINED, KINDS };

struct Context {
    int device, references, fault; /* after a fault every call answers with its status, as on a GPU */
    bool primary;
};

/* The first member of a stream, event, graph or executable graph. They are never given back to the allocator, so that a
 * stale handle is found out. */
struct Object {
    enum Kind kind;
    bool alive;
    struct Context *context;
    struct Object *next;
};

/* device.c */
enum Rule { ANYWHERE = 0, CONTEXT = 1, UNSAFE = 2 }; /* needs a current context; not allowed to a capturing thread */
int enter(const char *function, int rule); /* takes the lock, writes the log; the status that the call must return */
int leave(int status);                     /* gives the lock back */
#define ENTER(function, rule)                                                                                         \
    do {                                                                                                               \
        int refused = enter(function, rule);                                                                           \
        if (refused)                                                                                                   \
            return leave(refused);                                                                                     \
    } while (0)
void *create(enum Kind kind, size_t size);
void *object(const void *handle, enum Kind kind); /* NULL unless it is alive */
void destroy(void *handle);
void violation(struct Context *context, const char *format, ...); /* what a GPU would punish: the context is lost */
void *reach(struct Context *context, Address address, size_t size, enum Kind kind); /* the bytes; NULL if it may not */
bool on_device(Address address);
struct Context *current_context(void);
int thread_id(void);

/* stream.c */
bool capture_forbids(void); /* whether this thread captures; the capture is then invalid */
void forget_streams(struct Context *context);

#endif
