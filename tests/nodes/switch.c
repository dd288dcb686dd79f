// A network switch with a rate and a delay, for kernels without netem: switch MILLISECONDS MBIT PROCESS...
//
// It makes the network card "eth0" in the network namespace of each process. A frame first waits until its receiver's
// link is free, which transmits MBIT million bits per second (0: no limit), and then takes the delay. Fast links carry
// segments of up to 64 KiB, which the kernels of the nodes would otherwise cut into frames, for less work per byte.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST_PORTS = 32, LONGEST = 10 + 14 + 65536, HEADER = 10, AT_ONCE = 16 };
// From this rate on, segments are not cut: one of them then takes less than a millisecond.
static const double UNCUT_FROM = 1e9;
// What a link holds at the most before it drops frames, in bytes.
static const double FULL = 4e6;

typedef struct Frame {
    struct Frame *next;
    double due;
    long size;
    unsigned char bytes[];
} Frame;

typedef struct {
    int card;
    unsigned char address[6];
    int is_known;
    double free_at;
    Frame *first, **end;
} Port;

static Port ports[MOST_PORTS];
static int count;
static double delay, rate;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void plug_in(const char *process) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/net", process);
    int space = open(path, O_RDONLY);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0) fail(path);
    close(space);
    int is_uncut = rate == 0 || rate >= UNCUT_FROM;
    int card = open("/dev/net/tun", O_RDWR | O_NONBLOCK), size = HEADER;
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    strcpy(request.ifr_name, "eth0");
    if (card < 0 || ioctl(card, TUNSETIFF, &request) < 0 || ioctl(card, TUNSETVNETHDRSZ, &size) < 0) fail("tun");
    if (is_uncut && ioctl(card, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0) fail("offload");
    ports[count] = (Port){.card = card};
    ports[count].end = &ports[count].first;
    count++;
}

static void send_to(Port *port, const unsigned char *bytes, long size, double now) {
    double start = port->free_at > now ? port->free_at : now;
    if (rate > 0 && (start - now) * rate / 8 > FULL) return;
    Frame *frame = malloc(sizeof *frame + size);
    if (!frame) fail("malloc");
    port->free_at = rate > 0 ? start + (size - HEADER) * 8 / rate : start;
    *frame = (Frame){.due = port->free_at + delay, .size = size};
    memcpy(frame->bytes, bytes, size);
    *port->end = frame;
    port->end = &frame->next;
}

static void receive_from(Port *port) {
    static unsigned char bytes[LONGEST];
    long size;
    for (int i = 0; i < AT_ONCE && (size = read(port->card, bytes, LONGEST)) > HEADER + 12; i++) {
        unsigned char *to = bytes + HEADER, *from = to + 6;
        memcpy(port->address, from, 6);
        port->is_known = 1;
        double now = seconds();
        Port *target = NULL;
        for (Port *other = ports; other < ports + count; other++)
            if (other->is_known && !memcmp(other->address, to, 6)) target = other;
        for (Port *other = ports; other < ports + count; other++)
            if (other == target || (!target && other != port)) send_to(other, bytes, size, now);
    }
}

// Deliver what is due; returns when the next frame is.
static double deliver(Port *port, double now) {
    while (port->first && port->first->due <= now) {
        Frame *frame = port->first;
        if (write(port->card, frame->bytes, frame->size) < 0) { /* its card is down */ }
        port->first = frame->next;
        if (!port->first) port->end = &port->first;
        free(frame);
    }
    return port->first ? port->first->due : now + 1;
}

int main(int given, char **words) {
    if (given < 4 || given - 3 > MOST_PORTS) return 2;
    prctl(PR_SET_TIMERSLACK, 1000);
    delay = atof(words[1]) / 1e3;
    rate = atof(words[2]) * 1e6;
    int own = open("/proc/self/ns/net", O_RDONLY);
    for (int i = 3; i < given; i++) plug_in(words[i]);
    if (own < 0 || setns(own, CLONE_NEWNET) < 0) fail("own network"); // or it would count as a process of a node
    puts("ready");
    fflush(stdout);
    struct pollfd watched[MOST_PORTS];
    for (;;) {
        double now = seconds(), next = now + 1;
        for (int i = 0; i < count; i++) {
            double due = deliver(&ports[i], now);
            if (due < next) next = due;
            watched[i] = (struct pollfd){.fd = ports[i].card, .events = POLLIN};
        }
        double left = next - seconds();
        struct timespec wait = {0, left > 0 ? (long)(left * 999999999) : 0};
        if (ppoll(watched, count, &wait, NULL) <= 0) continue;
        for (int i = 0; i < count; i++)
            if (watched[i].revents & POLLIN) receive_from(&ports[i]);
    }
}
