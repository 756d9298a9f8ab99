/* The floor under the benchmarks: a server of Server-Sent Events that does nothing but send.
 *
 *   floor PORT [REDIS_PORT]
 *
 * GET /sub/NAME is answered with a stream's head at once, and kept by its name. POST /pub/NAME (keep-alive, pipelined, with
 * a Content-Length) sends its body to the streams of that name: one send() each, of as many bytes as agent-sse writes for
 * an event. With REDIS_PORT the events come from Redis instead: the first stream of a name subscribes to the channel that
 * agent-sse publishes the session's events to, and the heads wait for Redis' confirmation.
 *
 * No tokens, no history, no heartbeats, no order to keep and no buffer: a client that does not take an event whole at once
 * is closed. What is left is mostly the kernel's work, which a server in no language is spared. Everything is at 127.0.0.1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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

#define READ_BYTES (1024 * 1024) /* also the bound of a request and of a message */
#define TOPICS 16384             /* lists of them, by hash */

struct client {
    int fd;
    char *rest; /* the beginning of a request */
    size_t rest_len, place;
    struct topic *topic; /* of a stream */
    struct client *next; /* in the list of the closed */
};

struct topic {
    char *name;
    size_t name_len, count, room;
    struct client **clients;
    int subscribed;
    struct topic *next;
};

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache, no-store, no-transform\r\n"
    "Transfer-Encoding: chunked\r\n\r\n";
static const char TAKEN[] = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";

static struct topic *topics[TOPICS];
static struct client *closed, redis = {.fd = -1};
static int epoll_fd;

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *need(void *memory) {
    if (!memory) die("memory");
    return memory;
}

static void watch(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

/* -- streams by name ------------------------------------------------------------------------------------------------ */

static struct topic **look_up(const char *name, size_t length) { /* where it is, or where it belongs */
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    struct topic **at = &topics[hash % TOPICS];
    while (*at && ((*at)->name_len != length || memcmp((*at)->name, name, length))) at = &(*at)->next;
    return at;
}

static void drop(struct client *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    if (c->topic) {
        struct client *last = c->topic->clients[--c->topic->count];
        c->topic->clients[last->place = c->place] = last;
    }
    c->next = closed; /* freed when no event of this turn can name it any more */
    closed = c;
}

static void put(struct client *c, const char *data, size_t length) {
    if (send(c->fd, data, length, MSG_NOSIGNAL) != (ssize_t)length) drop(c);
}

static void put_all(struct topic *t, const char *data, size_t length) {
    for (size_t i = t->count; i-- > 0;) put(t->clients[i], data, length); /* from behind: dropping moves the last one */
}

static void deliver(struct topic *t, const char *id, size_t id_len, const char *payload, size_t length) {
    static char frame[READ_BYTES + 128];
    size_t event = sizeof "id: \ndata: \n\n" - 1 + id_len + length;
    int n = snprintf(frame, sizeof frame, "%zx\r\nid: %.*s\ndata: ", event, (int)id_len, id);
    if (n + length + 4 > sizeof frame) die("an event is too large");
    char *end = mempcpy(mempcpy(frame + n, payload, length), "\n\n\r\n", 4);
    put_all(t, frame, (size_t)(end - frame));
}

static void join(struct client *c, const char *name, size_t length) {
    struct topic **at = look_up(name, length), *t = *at;
    if (!t) {
        t = *at = need(calloc(1, sizeof *t));
        t->name = need(strndup(name, length));
        t->name_len = length;
        if (redis.fd >= 0) {
            char command[1024];
            int n = snprintf(command, sizeof command, "SUBSCRIBE agent_sse:{%s}:channel\r\n", t->name);
            if (n >= (int)sizeof command || send(redis.fd, command, (size_t)n, MSG_NOSIGNAL) != n) die("subscribing");
        } else {
            t->subscribed = 1;
        }
    }
    if (t->count == t->room) t->clients = need(realloc(t->clients, (t->room = t->room ? t->room * 2 : 1) * sizeof *t->clients));
    c->topic = t;
    t->clients[c->place = t->count++] = c;
    if (t->subscribed) put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1);
}

/* -- HTTP ----------------------------------------------------------------------------------------------------------- */

static void publish(const char *name, size_t name_len, const char *payload, size_t length) {
    static unsigned long long number;
    struct topic *t = *look_up(name, name_len);
    if (!t || !t->count) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    char id[48];
    int n = snprintf(id, sizeof id, "%lld-%llu", (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000, number++ % 10);
    deliver(t, id, (size_t)n, payload, length);
}

static char *take_request(struct client *c, char *at, char *end) { /* what follows it; NULL when it is not all there */
    char *head_end = memmem(at, (size_t)(end - at), "\r\n\r\n", 4);
    if (!head_end) return NULL;
    char *name = at + (*at == 'P' ? sizeof "POST /pub/" : sizeof "GET /sub/") - 1, *body = head_end + 4;
    char *name_end = name < head_end ? memchr(name, ' ', (size_t)(head_end - name)) : NULL;
    if (!name_end) {
        drop(c);
    } else if (*at != 'P') {
        join(c, name, (size_t)(name_end - name));
    } else {
        head_end[2] = 0;
        char *field = strcasestr(name_end, "\r\ncontent-length:");
        size_t length = field ? strtoul(field + sizeof "\r\ncontent-length:" - 1, NULL, 10) : 0;
        head_end[2] = '\r';
        if ((size_t)(end - body) < length) return NULL;
        publish(name, (size_t)(name_end - name), body, length);
        body += length;
        put(c, TAKEN, sizeof TAKEN - 1);
    }
    return body;
}

/* -- Redis ---------------------------------------------------------------------------------------------------------- */

static char *take_part(char *at, char *end, char **bytes, size_t *length) { /* of a reply; a bulk string or an integer */
    char *line_end = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
    if (!line_end) return NULL;
    *bytes = line_end + 1;
    *length = *at == '$' ? strtoul(at + 1, NULL, 10) : 0;
    if (*at == ':') return line_end + 1;
    return (size_t)(end - *bytes) < *length + 2 ? NULL : *bytes + *length + 2;
}

static char *take_message(struct client *c, char *at, char *end) { /* as take_request */
    (void)c;
    if (end - at < 4) return NULL;
    if (memcmp(at, "*3\r\n", 4)) die("Redis says what is not expected");
    char *kind, *channel, *data, *next = at + 4;
    size_t kind_len, channel_len, data_len;
    if (!(next = take_part(next, end, &kind, &kind_len)) || !(next = take_part(next, end, &channel, &channel_len))
        || !(next = take_part(next, end, &data, &data_len))) return NULL;
    char *name = memchr(channel, '{', channel_len), *name_end = memchr(channel, '}', channel_len);
    struct topic *t = name && name_end ? *look_up(name + 1, (size_t)(name_end - name - 1)) : NULL;
    if (!t) return next;
    if (*kind == 's') {
        t->subscribed = 1;
        put_all(t, STREAM_HEAD, sizeof STREAM_HEAD - 1);
        return next;
    }
    char *id_end = memchr(data, ' ', data_len); /* "<id> <the id before> <payload>" */
    char *payload = id_end ? memchr(id_end + 1, ' ', (size_t)(data + data_len - id_end - 1)) : NULL;
    if (!payload++) die("a message is not of agent-sse");
    deliver(t, data, (size_t)(id_end - data), payload, (size_t)(data + data_len - payload));
    return next;
}

static int connect_to(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connecting to Redis");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* -- the loop ------------------------------------------------------------------------------------------------------- */

static void receive(struct client *c) {
    static char buffer[READ_BYTES + 1]; /* and an end, for what looks for one */
    if (c->fd < 0) return;
    if (c->rest_len) memcpy(buffer, c->rest, c->rest_len);
    ssize_t got = recv(c->fd, buffer + c->rest_len, READ_BYTES - c->rest_len, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        if (c == &redis) die("Redis closed the connection");
        drop(c);
        return;
    }
    if (c->topic) return; /* a stream's client has nothing to say */
    char *at = buffer, *end = buffer + c->rest_len + got, *next;
    *end = 0;
    while (at < end && c->fd >= 0 && (next = c == &redis ? take_message(c, at, end) : take_request(c, at, end))) at = next;
    free(c->rest);
    c->rest = NULL;
    c->rest_len = (size_t)(end - at);
    if (c->rest_len) memcpy(c->rest = need(malloc(c->rest_len)), at, c->rest_len);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct client *c = need(calloc(1, sizeof *c));
        c->fd = fd;
        watch(fd, c);
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) die("accept");
}

static int listen_on(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) die("listen");
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        fputs("usage: floor PORT [REDIS_PORT]\n", stderr);
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct epoll_event events[1024];
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll");
    if (argc == 3) watch(redis.fd = connect_to(atoi(argv[2])), &redis);
    int listener = listen_on(atoi(argv[1]));
    watch(listener, NULL);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 1024, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr) receive(events[i].data.ptr);
            else accept_all(listener);
        while (closed) {
            struct client *c = closed;
            closed = c->next;
            free(c->rest);
            free(c);
        }
    }
}
