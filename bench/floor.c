/* The floor: the least work that a gateway can do, to hold the real one's figures against.
 *
 * One epoll loop, libc only, no checks of any kind: every client is trusted to send one whole request, then one
 * whole frame at a time, as bench/driver.py does. What it does is what the gateway does: the HTTP upgrade; one
 * SUBSCRIBE for all ids that asked in the same turn of the loop and one MGET for their retained results, in one
 * write; the registration's answer once Redis has answered both; a frame for each message; one UNSUBSCRIBE for all
 * clients that left in the same turn. Its frames are the gateway's, byte for byte.
 *
 * Usage: floor REDIS_ADDRESS REDIS_PORT. The port it listens on is its only line of output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS = 1 << 16, BUCKETS = 1 << 16, EVENTS = 512, BACKLOG = 4096, ID_BYTES = 128, BUFFER = 1 << 20 };

struct client { int next; uint8_t upgraded, id_length; char id[ID_BYTES]; };

static struct client clients[CLIENTS];  /* by file descriptor; a page costs memory only once it is touched */
static int buckets[BUCKETS];            /* hash of an id -> file descriptor; 0 ends a chain, as stdin is no client */
static int joining[EVENTS], joining_count, leaving[EVENTS], leaving_count;   /* in this turn of the loop */
static int waiting[CLIENTS];            /* registrations whose MGET is on its way, oldest first: a ring */
static uint16_t waiting_head, waiting_tail;
static char redis_in[BUFFER], redis_out[BUFFER], frame[4096];
static size_t redis_in_length;
static long retained_left;              /* elements of the current MGET reply that have not been read */
static int redis_fd;

/* --- HTTP upgrade: base64(SHA-1(key + GUID)), RFC 6455 section 4.2.2 --- */

static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

static void sha1_block(uint32_t h[5], const uint8_t *block) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
        uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
        uint32_t t = rotate(a, 5) + f + e + k + w[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static void upgrade(int fd, const char *request, size_t length) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char header[] = "Sec-WebSocket-Key: ";
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t text[128] = {0}, digest[21] = {0};
    char accept[29];
    memcpy(text, (char *)memmem(request, length, header, sizeof header - 1) + sizeof header - 1, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80, text[126] = 480 >> 8, text[127] = 480 & 255;   /* padding; 60 bytes are 480 bits */
    sha1_block(h, text), sha1_block(h, text + 64);
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
    for (int i = 0; i < 7; i++) {
        uint32_t three = digest[3 * i] << 16 | digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++) accept[4 * i + j] = letters[three >> (18 - 6 * j) & 63];
    }
    accept[27] = '=', accept[28] = 0;
    int size = sprintf(frame, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    send(fd, frame, size, MSG_NOSIGNAL);
    clients[fd].upgraded = 1;
}

/* --- Who has which id --- */

static int *bucket(const char *id, int length) {
    uint32_t hash = 2166136261u;   /* FNV-1a */
    for (int i = 0; i < length; i++) hash = (hash ^ (uint8_t)id[i]) * 16777619u;
    return &buckets[hash % BUCKETS];
}

static int find(const char *id, int length) {
    int fd = *bucket(id, length);
    while (fd && memcmp(clients[fd].id, id, length)) fd = clients[fd].next;
    return fd;
}

static void forget(int fd) {
    int *link = bucket(clients[fd].id, clients[fd].id_length);
    while (*link != fd) link = &clients[*link].next;
    *link = clients[fd].next;
}

/* --- Clients --- */

static void send_text(int fd, const char *before, const char *value, int length, const char *after) {
    struct client *client = &clients[fd];
    int size = sprintf(frame + 4, "{\"topic\":\"/user/topic/%s\",\"webSocketId\":\"%.*s\",%s%.*s%s}", before,
                       client->id_length, client->id, after, length, value, length ? "\"" : "");
    int start = size < 126 ? 2 : 0;
    frame[start] = (char)0x81;
    if (start) frame[3] = size;
    else frame[1] = 126, frame[2] = size >> 8, frame[3] = size;
    send(fd, frame + start, size + 4 - start, MSG_NOSIGNAL);
}

static void authorize(int fd, const char *result, int length) {
    send_text(fd, "authorization", result, length, "\"authResult\":\"");
}

static void readable(int fd) {
    static const char member[] = "\"webSocketId\":\"";
    uint8_t in[4096];
    ssize_t length = recv(fd, in, sizeof in, 0);
    struct client *client = &clients[fd];
    if (length <= 0) { leaving[leaving_count++] = fd; return; }
    if (!client->upgraded) { upgrade(fd, (char *)in, length); return; }
    int head = (in[1] & 127) == 126 ? 4 : 2, size = head == 4 ? in[2] << 8 | in[3] : in[1] & 127;
    uint8_t *mask = in + head, *payload = mask + 4;
    for (int i = 0; i < size; i++) payload[i] ^= mask[i & 3];
    if ((in[0] & 15) == 8) {   /* Close: the same code goes back */
        payload[-2] = 0x88, payload[-1] = size;
        send(fd, payload - 2, size + 2, MSG_NOSIGNAL);
        leaving[leaving_count++] = fd;
    } else {
        char *id = (char *)memmem(payload, size, member, sizeof member - 1) + sizeof member - 1;
        client->id_length = strchr(id, '"') - id;
        memcpy(client->id, id, client->id_length);
        int *chain = bucket(client->id, client->id_length);
        client->next = *chain, *chain = fd;
        joining[joining_count++] = fd;
    }
}

static void accept_all(int listener, int epoll) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);   /* a result follows the answer at once */
        clients[fd].upgraded = clients[fd].id_length = 0;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
    }
}

/* --- Redis --- */

static char *command(char *out, const char *name, const int *fds, int count) {
    out += sprintf(out, "*%d\r\n$%zu\r\n%s\r\n", count + 1, strlen(name), name);
    for (int i = 0; i < count; i++) {
        struct client *client = &clients[fds[i]];
        out += sprintf(out, "$%d\r\nwebsocket:", client->id_length + 10);
        memcpy(out, client->id, client->id_length);
        out += client->id_length, *out++ = '\r', *out++ = '\n';
    }
    return out;
}

static void end_of_turn(void) {
    char *out = redis_out;
    int registered = 0;
    for (int i = 0; i < leaving_count; i++)   /* a descriptor stays taken, and its id unchanged, until here */
        if (clients[leaving[i]].id_length) forget(leaving[i]), close(leaving[i]), leaving[registered++] = leaving[i];
        else close(leaving[i]);
    if (registered) out = command(out, "UNSUBSCRIBE", leaving, registered);
    if (joining_count) {
        out = command(out, "SUBSCRIBE", joining, joining_count);
        out = command(out, "MGET", joining, joining_count);
        for (int i = 0; i < joining_count; i++) waiting[waiting_tail++] = joining[i];
    }
    if (out > redis_out) send(redis_fd, redis_out, out - redis_out, MSG_NOSIGNAL);
    joining_count = leaving_count = 0;
}

/* Read one bulk string, number or null; NULL when it is not all there. A null has length -1. */
static char *item(char *at, char *end, char **text, int *length) {
    char *line = memchr(at, '\n', end - at);
    if (!line) return NULL;
    *text = line + 1;
    *length = *at == '$' ? atoi(at + 1) : -1;
    char *next = *length < 0 ? line + 1 : line + 1 + *length + 2;
    return next > end ? NULL : next;
}

static char *reply(char *at, char *end) {
    char *kind, *channel, *text, *line = memchr(at, '\n', end - at);
    int kind_length, channel_length, length;
    if (retained_left) {
        if (!(at = item(at, end, &text, &length))) return NULL;
        int fd = waiting[waiting_head++];
        send_text(fd, "registration", "", 0, "\"registrationSucceeded\":true");
        if (length >= 0) authorize(fd, text, length);
        retained_left--;
        return at;
    }
    if (!line) return NULL;
    if (*at == '*') { retained_left = atol(at + 1); return line + 1; }   /* the rest: pushes of three items */
    if (!(at = item(line + 1, end, &kind, &kind_length))) return NULL;
    if (!(at = item(at, end, &channel, &channel_length))) return NULL;
    if (!(at = item(at, end, &text, &length))) return NULL;
    if (*kind == 'm') authorize(find(channel + 10, channel_length - 10), text, length);
    return at;
}

static void redis_readable(void) {
    ssize_t length = recv(redis_fd, redis_in + redis_in_length, BUFFER - redis_in_length, 0);
    if (length <= 0) exit(1);
    redis_in_length += length;
    char *at = redis_in, *end = redis_in + redis_in_length, *next;
    while (at < end && (next = reply(at, end))) at = next;
    redis_in_length = end - at;
    memmove(redis_in, at, redis_in_length);
}

static void connect_redis(const char *address, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(address)};
    static const char hello[] = "HELLO 3\r\nPING\r\n";
    int on = 1;
    redis_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(redis_fd, (struct sockaddr *)&to, sizeof to)) { perror("floor: Redis"); exit(1); }
    setsockopt(redis_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    send(redis_fd, hello, sizeof hello - 1, 0);
    for (size_t length = 0; length < 7 || memcmp(redis_in + length - 7, "+PONG\r\n", 7);)
        length += recv(redis_fd, redis_in + length, BUFFER - length, 0);
}

int main(int count, char **arguments) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    struct epoll_event events[EVENTS];
    if (count != 3) return 2;
    connect_redis(arguments[1], atoi(arguments[2]));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    if (bind(listener, (struct sockaddr *)&here, size) || listen(listener, BACKLOG)) { perror("floor"); return 1; }
    getsockname(listener, (struct sockaddr *)&here, &size);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    epoll_ctl(epoll, EPOLL_CTL_ADD, redis_fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = redis_fd});
    printf("%d\n", ntohs(here.sin_port)), fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++)
            if (events[i].data.fd == listener) accept_all(listener, epoll);
            else if (events[i].data.fd == redis_fd) redis_readable();
            else readable(events[i].data.fd);
        end_of_turn();
    }
}
