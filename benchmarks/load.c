/* Many Server-Sent Events clients in one epoll loop: the load of the benchmarks, compiled so as not to be the bottleneck.
 *
 *   load PORT FILE READY NEED_ID
 *
 * FILE has one connection a line: target TAB token TAB cursor (the last two may be empty). READY says when a stream
 * counts as open: "head" (the response's head is there), "body" (its first byte) or "id" (an `id:` line without data).
 * NEED_ID = 1 counts only events that have an id (a snapshot's have none).
 *
 * An event counts when its data holds "mark":"<n>:<t>": n is the session's number of it (1 apart from the one before on
 * every connection, or something was lost or doubled), t the publisher's CLOCK_REALTIME in ns. Everything is at 127.0.0.1.
 *
 * Commands on stdin, a line each; every answer is one line of JSON with "event":
 *   open WIDTH EACH   open all, WIDTH at a time; "opened" when each is ready and has EACH events
 *   reset             counters and latencies from here on: "reset"
 *   expect N          "expected" when N events have come since the last reset
 *   report            "report"
 *   ids               "ids": the id of each connection's first event since it was opened
 *   close             "closed"
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { FRESH, CONNECTING, HEAD, BODY, DONE };          /* of a connection */
enum { SIZE, SIZE_END, CHUNK, CHUNK_END, LAST };       /* of the chunked transfer coding */
enum { READY_HEAD, READY_BODY, READY_ID };
#define PER_ADDRESS 25000                              /* connections from one source address: its ports are finite */
#define READ_BYTES (256 * 1024)
#define MAX_EVENT (4 * 1024 * 1024)
#define SUB 64                                         /* buckets per power of two of the latencies */

struct conn {
    char *target, *token, *cursor, *rest, *first_id;
    size_t rest_len;
    uint64_t chunk_left, events;
    int64_t last;
    int fd;
    uint8_t state, chunked, chunk_state, ready, complete, has_id, has_data, marked;
    int64_t mark, sent;
    char id[48];
};

static struct conn *conns;
static size_t count, next_open, opening, width, completed, settled, failed, ended;
static uint64_t each, total, expected, lost, doubled, heartbeats, bytes_in, histogram[64 * SUB], highest;
static int epoll_fd, port, ready_at, need_id, open_asked, told_open, keep_going = 1;
static char error_text[256];
static struct timespec opened_at;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void die(const char *what) {
    printf("{\"event\":\"error\",\"message\":\"load: %s: %s\"}\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

/* -- latencies: buckets 1/64 apart, so a quantile is right within 2 % ------------------------------------------------ */

static unsigned bucket_of(uint64_t ns) {
    if (ns < SUB) return (unsigned)ns;
    unsigned top = 63 - (unsigned)__builtin_clzll(ns);
    return (top - 5) * SUB + (unsigned)((ns >> (top - 6)) & (SUB - 1));
}

static double bucket_ns(unsigned b) {
    if (b < SUB) return b;
    unsigned top = b / SUB + 5;
    return (double)(((uint64_t)SUB + b % SUB) << (top - 6)) * (1 + 0.5 / SUB);
}

static double quantile(double q) {
    uint64_t all = 0, seen = 0;
    for (unsigned b = 0; b < 64 * SUB; b++) all += histogram[b];
    if (!all) return -1;
    for (unsigned b = 0; b < 64 * SUB; b++)
        if ((seen += histogram[b]) >= q * (double)all) return bucket_ns(b);
    return (double)highest;
}

/* -- one connection ------------------------------------------------------------------------------------------------- */

static void note_error(const char *text) { /* the first one; as it can stand in a JSON string */
    if (error_text[0]) return;
    size_t n = 0;
    for (; text[n] && n < sizeof error_text - 1; n++)
        error_text[n] = text[n] < ' ' || text[n] > '~' || text[n] == '"' || text[n] == '\\' ? ' ' : text[n];
    error_text[n] = 0;
}

static void drop(struct conn *c, int failure) {
    if (c->state == DONE) return;
    if (!c->ready) opening--;
    if (failure && !c->complete) settled++;
    if (failure) c->ready ? ended++ : failed++;
    c->state = DONE;
    close(c->fd);
    c->fd = -1;
    free(c->rest);
    c->rest = NULL;
    c->rest_len = 0;
}

static void check_complete(struct conn *c) {
    if (c->ready && !c->complete && c->events >= each) {
        c->complete = 1;
        completed++;
        settled++;
    }
}

static void make_ready(struct conn *c) {
    if (c->ready) return;
    opening--;
    c->ready = 1;
    check_complete(c);
}

static void parse_mark(struct conn *c, const char *data, size_t length) {
    static const char key[] = "\"mark\":\"";
    const char *at = memmem(data, length, key, sizeof key - 1);
    if (!at) {
        if (memmem(data, length, "\"heartbeat\"", 11)) heartbeats++;
        return;
    }
    char number[64];
    size_t left = (size_t)(data + length - at) - (sizeof key - 1);
    if (left > sizeof number - 1) left = sizeof number - 1;
    memcpy(number, at + sizeof key - 1, left);
    number[left] = 0;
    char *end;
    c->mark = strtoll(number, &end, 10);
    c->sent = *end == ':' ? strtoll(end + 1, NULL, 10) : 0;
    c->marked = 1;
}

static void dispatch(struct conn *c, int64_t at) {
    if (c->has_data && c->marked && (c->has_id || !need_id)) {
        if (c->last && c->mark > c->last + 1) lost += (uint64_t)(c->mark - c->last - 1);
        if (c->last && c->mark <= c->last) doubled++; /* or out of order */
        else c->last = c->mark;
        if (!c->events && c->has_id && !c->first_id) c->first_id = strdup(c->id);
        c->events++;
        total++;
        uint64_t took = at > c->sent ? (uint64_t)(at - c->sent) : 0;
        histogram[bucket_of(took)]++;
        if (took > highest) highest = took;
        check_complete(c);
    } else if (c->has_id && !c->has_data && ready_at == READY_ID) {
        make_ready(c);
    }
    c->has_id = c->has_data = c->marked = 0;
}

static void take_line(struct conn *c, const char *line, size_t length, int64_t at) {
    if (length && line[length - 1] == '\r') length--;
    if (!length) {
        dispatch(c, at);
    } else if (length >= 3 && !memcmp(line, "id:", 3)) {
        size_t from = length > 3 && line[3] == ' ' ? 4 : 3, n = length - from;
        c->has_id = 1;
        if (n > sizeof c->id - 1) n = sizeof c->id - 1;
        memcpy(c->id, line + from, n);
        c->id[n] = 0;
    } else if (length >= 5 && !memcmp(line, "data:", 5)) {
        c->has_data = 1;
        parse_mark(c, line + 5, length - 5);
    } else if (line[0] == ':') {
        heartbeats++;
    }
}

static void keep(struct conn *c, const char *data, size_t length) {
    if (data == c->rest && length == c->rest_len) return;
    char *copy = NULL;
    if (length) {
        if (length > MAX_EVENT || !(copy = malloc(length))) die("an event is too large");
        memcpy(copy, data, length);
    }
    free(c->rest);
    c->rest = copy;
    c->rest_len = length;
}

static void take_body(struct conn *c, const char *data, size_t length, int64_t at) {
    if (ready_at == READY_BODY && length) make_ready(c);
    char *joined = NULL;
    if (c->rest_len) {
        if (!(joined = malloc(c->rest_len + length))) die("memory");
        memcpy(joined, c->rest, c->rest_len);
        memcpy(joined + c->rest_len, data, length);
        data = joined;
        length += c->rest_len;
    }
    const char *end = data + length, *newline;
    while (data < end && (newline = memchr(data, '\n', (size_t)(end - data)))) {
        take_line(c, data, (size_t)(newline - data), at);
        data = newline + 1;
    }
    keep(c, data, (size_t)(end - data));
    free(joined);
}

static void take_chunks(struct conn *c, char *data, size_t length, int64_t at) {
    char *out = data, *in = data, *end = data + length; /* decoded in place: the body is never longer */
    while (in < end) {
        if (c->chunk_state == CHUNK) {
            size_t n = (size_t)(end - in) < c->chunk_left ? (size_t)(end - in) : (size_t)c->chunk_left;
            memmove(out, in, n);
            out += n;
            in += n;
            if (!(c->chunk_left -= n)) c->chunk_state = CHUNK_END;
            continue;
        }
        char byte = *in++;
        if (c->chunk_state == SIZE) {
            if (byte >= '0' && byte <= '9') c->chunk_left = c->chunk_left * 16 + (uint64_t)(byte - '0');
            else if ((byte | 32) >= 'a' && (byte | 32) <= 'f') c->chunk_left = c->chunk_left * 16 + (uint64_t)((byte | 32) - 'a' + 10);
            else c->chunk_state = SIZE_END;
        }
        if (byte == '\n') {
            if (c->chunk_state == SIZE_END) c->chunk_state = c->chunk_left ? CHUNK : LAST;
            else if (c->chunk_state == CHUNK_END) c->chunk_state = SIZE;
        }
        if (c->chunk_state == LAST) break;
    }
    if (out > data) take_body(c, data, (size_t)(out - data), at);
    if (c->chunk_state == LAST) drop(c, 1);
}

static int take_head(struct conn *c, char **data, size_t *length) { /* 1 when the body begins at *data */
    size_t all = c->rest_len + *length;
    char *joined = malloc(all + 1);
    if (!joined) die("memory");
    if (c->rest_len) memcpy(joined, c->rest, c->rest_len);
    memcpy(joined + c->rest_len, *data, *length);
    joined[all] = 0;
    char *end = strstr(joined, "\r\n\r\n");
    if (!end) {
        keep(c, joined, all);
        free(joined);
        return 0;
    }
    size_t consumed = (size_t)(end - joined) + 4 - c->rest_len; /* of what has just come */
    if (strncmp(joined, "HTTP/1.1 200", 12)) {
        note_error(joined);
        free(joined);
        drop(c, 1);
        return 0;
    }
    end[2] = 0;
    c->chunked = strcasestr(joined, "\r\ntransfer-encoding: chunked\r\n") != NULL;
    free(joined);
    keep(c, NULL, 0);
    *data += consumed;
    *length -= consumed;
    c->state = BODY;
    if (ready_at == READY_HEAD) make_ready(c);
    return 1;
}

static void receive(struct conn *c) {
    static char buffer[READ_BYTES];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        note_error(got ? strerror(errno) : "the server closed a connection");
        drop(c, 1);
        return;
    }
    bytes_in += (uint64_t)got;
    int64_t at = now_ns(CLOCK_REALTIME);
    char *data = buffer;
    size_t length = (size_t)got;
    if (c->state == HEAD && !take_head(c, &data, &length)) return;
    if (!length) return;
    if (c->chunked) take_chunks(c, data, length, at);
    else take_body(c, data, length, at);
}

static void send_request(struct conn *c) {
    char request[16384];
    int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s%s%s%s%s%s\r\n",
        c->target, port, *c->token ? "Authorization: Bearer " : "", c->token, *c->token ? "\r\n" : "",
        *c->cursor ? "Last-Event-ID: " : "", c->cursor, *c->cursor ? "\r\n" : "");
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error || n >= (int)sizeof request || send(c->fd, request, (size_t)n, MSG_NOSIGNAL) != n) {
        note_error(strerror(error ? error : errno));
        drop(c, 1);
        return;
    }
    c->state = HEAD;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
}

static void start(struct conn *c, size_t index) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (count > PER_ADDRESS) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(index / PER_ADDRESS))};
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("bind");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct linger at_once = {.l_onoff = 1}; /* closed by a reset: tens of thousands leave no TIME_WAIT behind */
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    c->state = CONNECTING;
    opening++;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        note_error(strerror(errno));
        drop(c, 1);
    }
}

/* -- commands ------------------------------------------------------------------------------------------------------- */

static double seconds_since(struct timespec from) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)(t.tv_sec - from.tv_sec) + (double)(t.tv_nsec - from.tv_nsec) / 1e9;
}

static void report(const char *name) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    size_t open = 0;
    for (size_t i = 0; i < count; i++) open += conns[i].ready && conns[i].state != DONE;
    printf("{\"event\":\"%s\",\"events\":%llu,\"lost\":%llu,\"doubled\":%llu,\"heartbeats\":%llu,\"bytes\":%llu,\"open\":%zu,"
        "\"complete\":%zu,\"failed\":%zu,\"ended\":%zu,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,"
        "\"seconds\":%.4f,\"cpu_seconds\":%.4f,\"error\":\"%s\"}\n",
        name, (unsigned long long)total, (unsigned long long)lost, (unsigned long long)doubled, (unsigned long long)heartbeats,
        (unsigned long long)bytes_in, open, completed, failed, ended, quantile(.5) / 1e3, quantile(.9) / 1e3, quantile(.99) / 1e3,
        (double)highest / 1e3, seconds_since(opened_at),
        (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6 + (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6,
        error_text);
}

static void command(char *line) {
    if (!strncmp(line, "open ", 5)) {
        char *end;
        width = strtoull(line + 5, &end, 10);
        each = strtoull(end, NULL, 10);
        next_open = completed = settled = failed = ended = 0;
        told_open = error_text[0] = 0;
        open_asked = 1;
        clock_gettime(CLOCK_MONOTONIC, &opened_at);
    } else if (!strcmp(line, "reset")) {
        memset(histogram, 0, sizeof histogram);
        total = lost = doubled = heartbeats = bytes_in = highest = 0;
        puts("{\"event\":\"reset\"}");
    } else if (!strncmp(line, "expect ", 7)) {
        expected = strtoull(line + 7, NULL, 10);
    } else if (!strcmp(line, "report")) {
        report("report");
    } else if (!strcmp(line, "ids")) {
        printf("{\"event\":\"ids\",\"ids\":[");
        for (size_t i = 0; i < count; i++) printf("%s\"%s\"", i ? "," : "", conns[i].first_id ? conns[i].first_id : "");
        puts("]}");
    } else if (!strcmp(line, "close")) {
        for (size_t i = 0; i < count; i++) {
            struct conn *c = &conns[i];
            if (c->state != FRESH) drop(c, 0);
            free(c->first_id);
            *c = (struct conn){.target = c->target, .token = c->token, .cursor = c->cursor, .fd = -1};
        }
        open_asked = 0;
        puts("{\"event\":\"closed\"}");
    } else {
        puts("{\"event\":\"error\",\"message\":\"load: unknown command\"}");
    }
    fflush(stdout);
}

static void read_commands(void) {
    static char pending[4096];
    static size_t held;
    ssize_t got = read(0, pending + held, sizeof pending - held - 1);
    if (got <= 0) {
        keep_going = 0;
        return;
    }
    held += (size_t)got;
    char *newline;
    while ((newline = memchr(pending, '\n', held))) {
        *newline = 0;
        command(pending);
        held -= (size_t)(newline + 1 - pending);
        memmove(pending, newline + 1, held);
    }
}

static void progress(void) {
    while (open_asked && next_open < count && opening < width) {
        start(&conns[next_open], next_open);
        next_open++;
    }
    if (open_asked && !told_open && next_open == count && settled == count) {
        told_open = 1;
        report("opened");
        fflush(stdout);
    }
    if (expected && total >= expected) {
        expected = 0;
        report("expected");
        fflush(stdout);
    }
}

static void read_file(const char *name) {
    FILE *file = fopen(name, "r");
    if (!file) die(name);
    char *line = NULL;
    size_t size = 0, room = 0;
    ssize_t length;
    while ((length = getline(&line, &size, file)) > 0) {
        if (line[length - 1] == '\n') line[--length] = 0;
        if (count == room && !(conns = realloc(conns, (room = room ? room * 2 : 1024) * sizeof *conns))) die("memory");
        char *target = strdup(line), *token = strchr(target, '\t'), *cursor = token ? strchr(token + 1, '\t') : NULL;
        if (!cursor) die("a line needs target, token and cursor");
        *token++ = *cursor++ = 0;
        conns[count++] = (struct conn){.target = target, .token = token, .cursor = cursor, .fd = -1};
    }
    free(line);
    fclose(file);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fputs("usage: load PORT FILE head|body|id 0|1\n", stderr);
        return 2;
    }
    port = atoi(argv[1]);
    ready_at = !strcmp(argv[3], "id") ? READY_ID : !strcmp(argv[3], "body") ? READY_BODY : READY_HEAD;
    need_id = atoi(argv[4]);
    read_file(argv[2]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event)) die("epoll");
    printf("{\"event\":\"started\",\"connections\":%zu}\n", count);
    fflush(stdout);
    while (keep_going) {
        int n = epoll_wait(epoll_fd, events, 1024, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        int asked = 0;
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) asked = 1;
            else if (c->state == CONNECTING) send_request(c);
            else if (c->state == HEAD || c->state == BODY) receive(c);
        }
        if (asked) read_commands();
        progress();
    }
    return 0;
}
