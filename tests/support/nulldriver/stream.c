/* Streams, capture, graphs and events. What is enqueued runs only when somebody waits for its stream. */
#define _GNU_SOURCE
#include "null.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum Mode { GLOBAL, THREAD_LOCAL, RELAXED }; /* CUstreamCaptureMode */

struct Event {
    struct Object object;
    struct Stream *stream; /* of the last record, and */
    uint64_t place;        /* how many pieces of work that stream had had with it; 0: never recorded */
    struct Capture *capture;
    double milliseconds;
    bool untimed;
};

struct Work {
    enum { TO_DEVICE, TO_HOST, HOST_FUNCTION, RECORD, WAIT } type;
    Address to, from;
    size_t size;
    void (*function)(void *);
    void *data;
    struct Event *event;  /* RECORD */
    struct Stream *other; /* WAIT: until so much of this stream is done */
    uint64_t place;
};

struct Graph { /* also an executable one, which has its work copied */
    struct Object object;
    struct Work *work;
    size_t count;
};

struct Capture {
    struct Stream *origin;
    struct Graph *graph;
    enum Mode mode;
    int thread;
    bool invalid;
    struct Capture *next;
};

struct Stream {
    struct Object object;
    struct Work *work; /* all that it ever had, of which so much is done: a test's streams are short */
    uint64_t count, done;
    struct Capture *capture;
    uint64_t captured; /* pieces of work of the capture that are this stream's */
    bool unjoined;
    struct Stream *next;
};

static struct Stream legacy; /* handle 0 */
static struct Stream *streams;
static struct Context *running; /* whose work is being done */
static struct Capture *captures;

static struct Stream *stream_of(void *handle) {
    if (handle)
        return object(handle, STREAM);
    legacy.object.context = current_context();
    return &legacy;
}

static void append(struct Work **list, uint64_t count, const struct Work *work) {
    if (!(count & (count - 1))) /* full at every power of two */
        *list = realloc(*list, (count ? 2 * count : 1) * sizeof **list);
    (*list)[count] = *work;
}

/* ---- running ---- */

static void run(struct Stream *stream, uint64_t until);

static void perform(struct Context *context, const struct Work *work) {
    struct timespec now;
    char *to, *from;
    switch (work->type) {
    case TO_DEVICE:
    case TO_HOST: /* host memory must be pinned: pageable memory makes the copy synchronous on a GPU */
        to = reach(context, work->to, work->size, work->type == TO_DEVICE ? DEVICE_MEMORY : PINNED_MEMORY);
        from = reach(context, work->from, work->size, work->type == TO_DEVICE ? PINNED_MEMORY : DEVICE_MEMORY);
        if (to && from)
            memcpy(to, from, work->size);
        break;
    case HOST_FUNCTION:
        work->function(work->data);
        break;
    case RECORD:
        clock_gettime(CLOCK_MONOTONIC, &now);
        work->event->milliseconds = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
        break;
    case WAIT:
        run(work->other, work->place);
    }
}

static void run(struct Stream *stream, uint64_t until) {
    while (stream->done < until && !stream->object.context->fault) {
        struct Work work = stream->work[stream->done++];
        running = stream->object.context;
        perform(running, &work);
    }
}

/* For stand-ins of kernels, which are host functions: where bytes of device memory are; NULL, and a violation, if they
 * are nobody's. */
API void *null_reach(Address address, size_t size) { return reach(running, address, size, DEVICE_MEMORY); }

/* ---- capture ---- */

bool capture_forbids(void) {
    bool forbids = false;
    for (struct Capture *capture = captures; capture; capture = capture->next)
        if (capture->mode == GLOBAL || (capture->mode == THREAD_LOCAL && capture->thread == thread_id())) {
            capture->invalid = true;
            forbids = true;
        }
    return forbids;
}

static int enqueue(struct Stream *stream, struct Work work) {
    if (!stream)
        return INVALID_HANDLE;
    if (stream->object.context != current_context())
        return INVALID_CONTEXT;
    if (!stream->capture) {
        append(&stream->work, stream->count++, &work);
        return OK;
    }
    if (stream->capture->invalid)
        return CAPTURE_INVALIDATED;
    append(&stream->capture->graph->work, stream->capture->graph->count++, &work);
    stream->captured++;
    stream->unjoined = stream != stream->capture->origin;
    return OK;
}

API int cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER("cuStreamBeginCapture", CONTEXT);
    struct Stream *stream = stream_of(handle);
    if (!stream || stream == &legacy || stream->capture)
        return leave(stream ? CAPTURE_UNSUPPORTED : INVALID_HANDLE);
    struct Capture *capture = malloc(sizeof *capture);
    *capture = (struct Capture){stream, create(GRAPH, sizeof(struct Graph)), mode, thread_id(), false, captures};
    captures = stream->capture = capture;
    return leave(OK);
}

static void end(struct Capture *capture) {
    struct Capture **place = &captures;
    while (*place != capture)
        place = &(*place)->next;
    *place = capture->next;
    for (struct Stream *stream = streams; stream; stream = stream->next)
        if (stream->capture == capture)
            stream->capture = NULL;
}

API int cuStreamEndCapture(void *handle, struct Graph **graph) {
    int status = enter("cuStreamEndCapture", CONTEXT); /* one that fails ends the capture all the same */
    struct Stream *stream = stream_of(handle);
    struct Capture *capture = stream ? stream->capture : NULL;
    *graph = NULL;
    if (!capture)
        return leave(status ? status : INVALID_VALUE);
    if (capture->origin != stream)
        return leave(CAPTURE_UNMATCHED);
    if (capture->mode != RELAXED && capture->thread != thread_id())
        return leave(CAPTURE_WRONG_THREAD);
    for (struct Stream *each = streams; each && !status; each = each->next)
        if (each->capture == capture && each->unjoined)
            status = CAPTURE_UNJOINED;
    if (capture->invalid && !status)
        status = CAPTURE_INVALIDATED;
    end(capture);
    if (status)
        destroy(capture->graph);
    else
        *graph = capture->graph;
    return leave(status);
}

API int cuStreamIsCapturing(void *handle, int *status) { /* CUstreamCaptureStatus: none, active, invalidated */
    ENTER("cuStreamIsCapturing", CONTEXT);
    struct Stream *stream = stream_of(handle);
    if (!stream)
        return leave(INVALID_HANDLE);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return leave(OK);
}

/* ---- streams ---- */

API int cuStreamCreate(struct Stream **made, unsigned flags) {
    ENTER("cuStreamCreate", CONTEXT);
    if (flags > 1)
        return leave(INVALID_VALUE);
    *made = create(STREAM, sizeof **made);
    (*made)->next = streams;
    streams = *made;
    return leave(OK);
}

API int cuStreamDestroy_v2(void *handle) { /* what is enqueued still runs, some time */
    ENTER("cuStreamDestroy", CONTEXT);
    struct Stream *stream = object(handle, STREAM);
    if (!stream)
        return leave(INVALID_HANDLE);
    run(stream, stream->count);
    free(stream->work);
    destroy(stream);
    return leave(OK);
}

API int cuStreamSynchronize(void *handle) {
    ENTER("cuStreamSynchronize", CONTEXT);
    struct Stream *stream = stream_of(handle);
    if (!stream)
        return leave(INVALID_HANDLE);
    if (stream->capture || (stream == &legacy && capture_forbids())) {
        if (stream->capture)
            stream->capture->invalid = true;
        return leave(CAPTURE_UNSUPPORTED);
    }
    run(stream, stream->count);
    return leave(stream->object.context->fault);
}

API int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
    ENTER("cuMemcpyHtoDAsync", CONTEXT);
    if (!on_device(to) || on_device((Address)from))
        return leave(INVALID_VALUE);
    return leave(enqueue(stream_of(stream), (struct Work){TO_DEVICE, .to = to, .from = (Address)from, .size = size}));
}

API int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
    ENTER("cuMemcpyDtoHAsync", CONTEXT);
    if (on_device((Address)to) || !on_device(from))
        return leave(INVALID_VALUE);
    return leave(enqueue(stream_of(stream), (struct Work){TO_HOST, .to = (Address)to, .from = from, .size = size}));
}

API int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    ENTER("cuLaunchHostFunc", CONTEXT);
    return leave(enqueue(stream_of(stream), (struct Work){HOST_FUNCTION, .function = function, .data = data}));
}

/* ---- events ---- */

API int cuEventCreate(struct Event **made, unsigned flags) {
    ENTER("cuEventCreate", CONTEXT);
    if (flags & ~3u) /* CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING */
        return leave(INVALID_VALUE);
    *made = create(EVENT, sizeof **made);
    (*made)->untimed = flags & 2;
    return leave(OK);
}

API int cuEventDestroy_v2(void *handle) { /* may be on its way: then it is freed when it is done */
    ENTER("cuEventDestroy", CONTEXT);
    if (!object(handle, EVENT))
        return leave(INVALID_HANDLE);
    destroy(handle);
    return leave(OK);
}

API int cuEventRecord(void *handle, void *on) {
    ENTER("cuEventRecord", CONTEXT);
    struct Event *event = object(handle, EVENT);
    struct Stream *stream = stream_of(on);
    if (!event || !stream)
        return leave(INVALID_HANDLE);
    event->stream = stream;
    event->capture = stream->capture;
    event->place = stream->captured;
    if (stream->capture)
        return leave(stream->capture->invalid ? CAPTURE_INVALIDATED : OK);
    int status = enqueue(stream, (struct Work){RECORD, .event = event});
    event->place = stream->count;
    return leave(status);
}

API int cuStreamWaitEvent(void *handle, void *until, unsigned flags) {
    ENTER("cuStreamWaitEvent", CONTEXT);
    struct Stream *stream = stream_of(handle);
    struct Event *event = object(until, EVENT);
    if (!stream || !event || flags)
        return leave(INVALID_HANDLE);
    if (event->capture) { /* the stream joins the capture, or the event's stream is joined to this one */
        if (!stream->capture)
            stream->capture = event->capture, stream->unjoined = true, stream->captured = 0;
        else if (event->place == event->stream->captured)
            event->stream->unjoined = false;
        return leave(stream->capture == event->capture ? OK : CAPTURE_ISOLATION);
    }
    if (stream->capture) { /* on work that is not in the graph */
        stream->capture->invalid = true;
        return leave(CAPTURE_ISOLATION);
    }
    if (!event->stream)
        return leave(OK);
    return leave(enqueue(stream, (struct Work){WAIT, .other = event->stream, .place = event->place}));
}

API int cuEventSynchronize(void *handle) {
    ENTER("cuEventSynchronize", CONTEXT);
    struct Event *event = object(handle, EVENT);
    if (!event)
        return leave(INVALID_HANDLE);
    if (event->capture) { /* what is captured is never done */
        event->capture->invalid = true;
        return leave(CAPTURE_UNSUPPORTED);
    }
    if (event->stream)
        run(event->stream, event->place);
    return leave(event->object.context->fault);
}

API int cuEventElapsedTime_v2(float *milliseconds, void *first, void *second) {
    ENTER("cuEventElapsedTime", CONTEXT);
    struct Event *from = object(first, EVENT), *to = object(second, EVENT);
    if (!from || !to || !from->stream || !to->stream || from->capture || to->capture || from->untimed ||
        to->untimed)
        return leave(INVALID_HANDLE);
    if (from->place > from->stream->done || to->place > to->stream->done)
        return leave(NOT_READY);
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return leave(OK);
}

API int cuEventElapsedTime(float *milliseconds, void *first, void *second) {
    return cuEventElapsedTime_v2(milliseconds, first, second);
}

/* ---- graphs ---- */

API int cuGraphInstantiateWithFlags(struct Graph **made, void *handle, unsigned long long flags) {
    ENTER("cuGraphInstantiate", CONTEXT);
    struct Graph *graph = object(handle, GRAPH);
    if (!graph || flags)
        return leave(INVALID_VALUE);
    *made = create(EXEC, sizeof **made);
    for (size_t i = 0; i < graph->count; i++)
        append(&(*made)->work, (*made)->count++, &graph->work[i]);
    return leave(OK);
}

API int cuGraphInstantiate(struct Graph **made, void *graph, unsigned long long flags) {
    return cuGraphInstantiateWithFlags(made, graph, flags);
}

static int free_graph(const char *function, void *handle, enum Kind kind) {
    ENTER(function, CONTEXT);
    struct Graph *graph = object(handle, kind);
    if (!graph)
        return leave(INVALID_VALUE);
    free(graph->work);
    destroy(graph);
    return leave(OK);
}

API int cuGraphDestroy(void *graph) { return free_graph("cuGraphDestroy", graph, GRAPH); }

/* One that runs is freed when it is done: launches have copies of its work. */
API int cuGraphExecDestroy(void *exec) { return free_graph("cuGraphExecDestroy", exec, EXEC); }

API int cuGraphUpload(void *exec, void *stream) {
    ENTER("cuGraphUpload", CONTEXT);
    return leave(object(exec, EXEC) && stream_of(stream) ? OK : INVALID_VALUE);
}

API int cuGraphLaunch(void *handle, void *on) {
    ENTER("cuGraphLaunch", CONTEXT);
    struct Graph *exec = object(handle, EXEC);
    struct Stream *stream = stream_of(on);
    if (!exec || !stream)
        return leave(INVALID_VALUE);
    if (stream->capture) { /* allowed by the driver, as a child graph; never what this project wants */
        stream->capture->invalid = true;
        return leave(CAPTURE_UNSUPPORTED);
    }
    int status = OK;
    for (size_t i = 0; i < exec->count && !status; i++)
        status = enqueue(stream, exec->work[i]);
    return leave(status);
}

void forget_streams(struct Context *context) {
    for (struct Capture *each = captures, *next; each; each = next) {
        next = each->next;
        if (each->origin->object.context == context)
            end(each);
    }
    for (struct Stream *stream = streams; stream; stream = stream->next)
        if (stream->object.context == context)
            stream->done = stream->count;
}
