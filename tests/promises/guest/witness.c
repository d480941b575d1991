/*
 * The witness: uses all that a guest has been promised, all the time
 *
 * A process for each CPU, for memory and for each device that it is told of
 * does something whose result it knows, over and over, and counts.  The console
 * says how far each of them has come, and how often one was wrong:
 *
 *   guest: errors 0, memory 9, cpu0 12, cpu1 12, vda 31, sda 27, eth0 40
 *
 * A number that grows no more is a device that is lost; no line any more is a
 * guest that is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/fs.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    BLOCK = 4096,
    WORDS = BLOCK / sizeof(uint64_t),
    MEMORY_BLOCKS = 16 << 20 >> 12,
    BLOCKS_A_ROUND = 256,
    MAX_WORKERS = 32,
    MAX_COMPLAINTS = 3,
    PAUSE_MS = 10,          /* TCG has better things to do than this */
    LINE_MS = 200,
    FRAME_MS = 500,
    FRAME_TRIES = 20,       /* a network may lose frames, while the guest moves */
    ETHERTYPE = 0x88b5,     /* for local experiments */
};

typedef struct {
    char name[16];
    _Atomic uint32_t rounds;
    _Atomic uint32_t errors;
    pid_t pid;
} Worker;

static Worker *workers;
static Worker *self;
static int n_cpus;

static void pause_ms(unsigned int ms)
{
    struct timespec time = { ms / 1000, ms % 1000 * 1000000L };

    nanosleep(&time, NULL);
}

static void complain(const char *what)
{
    if (self->errors++ < MAX_COMPLAINTS) {
        printf("guest: %s: %s\n", self->name, what);
    }
}

/* Not in the registers or the stack of somebody else. */
static void go_to_cpu(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

static void fill(uint64_t *words, uint64_t key)
{
    for (int i = 0; i < WORDS; i++) {
        words[i] = mix(key) + i * (key | 1);
    }
}

static bool holds(const uint64_t *words, uint64_t key)
{
    for (int i = 0; i < WORDS; i++) {
        if (words[i] != mix(key) + i * (key | 1)) {
            return false;
        }
    }
    return true;
}

static void *need_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        complain("no memory");
        exit(EXIT_FAILURE);
    }
    return memory;
}

/* Each block is checked before it is written again. */
static void use_memory(void)
{
    uint64_t *memory = need_memory((size_t)MEMORY_BLOCKS * BLOCK);

    for (uint64_t turn = 0; ; turn++) {
        uint64_t *words = memory + turn % MEMORY_BLOCKS * WORDS;

        if (turn >= MEMORY_BLOCKS && !holds(words, turn - MEMORY_BLOCKS)) {
            complain("memory is not as it was left");
        }
        fill(words, turn);
        if (turn % BLOCKS_A_ROUND == 0 && turn >= MEMORY_BLOCKS) {
            self->rounds++;
            pause_ms(PAUSE_MS);
        }
    }
}

__attribute__((target("avx2")))
static uint64_t sum_avx2(const uint64_t *words)
{
    __m256i sum = _mm256_setzero_si256();
    uint64_t parts[4];

    for (int i = 0; i < WORDS; i += 4) {
        sum = _mm256_add_epi64(sum, _mm256_loadu_si256((void *)(words + i)));
    }
    _mm256_storeu_si256((void *)parts, sum);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

static uint64_t sum_plain(const uint64_t *words)
{
    uint64_t sum = 0;

    for (int i = 0; i < WORDS; i++) {
        sum += words[i];
    }
    return sum;
}

__attribute__((target("sse4.2")))
static uint32_t crc_sse42(const uint64_t *words)
{
    uint64_t crc = 0;

    for (int i = 0; i < WORDS; i++) {
        crc = _mm_crc32_u64(crc, words[i]);
    }
    return crc;
}

/* CRC-32C, bit by bit */
static uint32_t crc_plain(const uint64_t *words)
{
    const uint8_t *bytes = (const uint8_t *)words;
    uint32_t crc = 0;

    for (int i = 0; i < BLOCK; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
        }
    }
    return crc;
}

/*
 * As a C library does it: what the CPU can is asked once, when the guest starts.
 */
static void use_cpu(int cpu)
{
    bool avx2 = __builtin_cpu_supports("avx2");
    bool sse42 = __builtin_cpu_supports("sse4.2");
    uint64_t words[WORDS];

    go_to_cpu(cpu);
    fill(words, cpu);
    for (uint64_t sum = sum_plain(words), crc = crc_plain(words); ; ) {
        if ((avx2 && sum_avx2(words) != sum) ||
            (sse42 && crc_sse42(words) != crc) || sum_plain(words) != sum) {
            complain("it calculates wrong");
        }
        self->rounds++;
        pause_ms(PAUSE_MS);
    }
}

typedef struct {
    int fd;
    bool writable;
    uint64_t *words;
    uint64_t keys[3];       /* what stands in each of the places */
} Disk;

static bool transfer(Disk *disk, bool write, off_t offset)
{
    ssize_t done = write ? pwrite(disk->fd, disk->words, BLOCK, offset)
                         : pread(disk->fd, disk->words, BLOCK, offset);

    if (done != BLOCK) {
        complain(write ? "it cannot be written" : "it cannot be read");
    }
    return done == BLOCK;
}

/* Its first, middle and last block, from all CPUs, which may be all queues. */
static void use_disk(void)
{
    char path[32];
    uint64_t size;
    int read_only = 0;
    Disk disk = { 0 };

    snprintf(path, sizeof(path), "/dev/%s", self->name);
    disk.fd = open(path, O_RDWR | O_DIRECT);
    disk.writable = disk.fd >= 0;
    if (!disk.writable) {
        disk.fd = open(path, O_RDONLY | O_DIRECT);
    }
    if (disk.fd < 0 || ioctl(disk.fd, BLKGETSIZE64, &size) ||
        size < 3 * BLOCK) {
        complain("it is no disk");
        return;
    }
    if (!ioctl(disk.fd, BLKROGET, &read_only) && read_only) {
        disk.writable = false;
    }
    disk.words = need_memory(BLOCK);
    for (uint64_t turn = 1; ; turn++) {
        int place = turn % 3;
        off_t offset = (off_t[]) { 0, size / BLOCK / 2 * BLOCK,
                                   (size / BLOCK - 1) * BLOCK }[place];
        uint64_t key = (uint64_t)self->name[0] << 32 | turn;

        go_to_cpu(turn / 3 % n_cpus);
        if (transfer(&disk, false, offset)) {
            if (disk.keys[place] && !holds(disk.words, disk.keys[place])) {
                complain("it is not as it was left");
            }
            if (disk.writable) {
                fill(disk.words, key);
                disk.keys[place] = key;
                transfer(&disk, true, offset);
            }
        }
        if (place == 0 && disk.writable && fdatasync(disk.fd)) {
            complain("it cannot be flushed");
        }
        self->rounds++;
        pause_ms(PAUSE_MS);
    }
}

static int open_nic(const char *name, uint16_t type, uint8_t *mac)
{
    struct sockaddr_ll address = { .sll_family = AF_PACKET,
                                   .sll_protocol = htons(type) };
    int fd = socket(AF_PACKET, SOCK_RAW, htons(type));
    struct ifreq request = { 0 };

    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, SIOCGIFINDEX, &request)) {
        complain("it is no network interface");
        exit(EXIT_FAILURE);
    }
    address.sll_ifindex = request.ifr_ifindex;
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
        ioctl(fd, SIOCGIFHWADDR, &request)) {
        complain("it cannot be used");
        exit(EXIT_FAILURE);
    }
    memcpy(mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
    return fd;
}

typedef bool Matches(const uint8_t *sent, const uint8_t *received);

static bool is_same(const uint8_t *sent, const uint8_t *received)
{
    return !memcmp(sent, received, ETH_ZLEN);
}

static bool is_arp_reply(const uint8_t *sent, const uint8_t *received)
{
    const struct ether_arp *asked = (const void *)(sent + ETH_HLEN);
    const struct ether_arp *told = (const void *)(received + ETH_HLEN);

    return told->ea_hdr.ar_op == htons(ARPOP_REPLY) &&
           !memcmp(asked->arp_tpa, told->arp_spa, sizeof(told->arp_spa));
}

/* Until there is what answers that frame. */
static void exchange(int out, int in, const uint8_t *frame, Matches *matches)
{
    uint8_t got[ETH_FRAME_LEN];
    struct pollfd ready = { .fd = in, .events = POLLIN };

    for (int try = 0; try < FRAME_TRIES; try++) {
        if (send(out, frame, ETH_ZLEN, MSG_DONTWAIT) != ETH_ZLEN) {
            pause_ms(FRAME_MS);
        }
        while (poll(&ready, 1, FRAME_MS) == 1) {
            if (recv(in, got, sizeof(got), 0) >= ETH_ZLEN - 18 &&
                matches(frame, got)) {
                return;
            }
        }
    }
    complain("no frame comes through");
}

/* From one interface to the other one, which is on the same network, and back. */
static void use_two_nics(const char *one, const char *other)
{
    uint8_t macs[2][ETH_ALEN];
    int fds[2] = { open_nic(one, ETHERTYPE, macs[0]),
                   open_nic(other, ETHERTYPE, macs[1]) };

    for (uint32_t turn = 0; ; turn++) {
        uint8_t frame[ETH_ZLEN] = { 0 };
        struct ether_header *header = (void *)frame;
        int from = turn & 1;

        go_to_cpu(turn / 2 % n_cpus);
        memcpy(header->ether_dhost, macs[!from], ETH_ALEN);
        memcpy(header->ether_shost, macs[from], ETH_ALEN);
        header->ether_type = htons(ETHERTYPE);
        memcpy(frame + ETH_HLEN, &turn, sizeof(turn));
        exchange(fds[from], fds[!from], frame, is_same);
        self->rounds++;
        pause_ms(PAUSE_MS);
    }
}

/* The host answers. */
static void use_nic(const char *name)
{
    uint8_t frame[ETH_ZLEN] = { 0 };
    struct ether_header *header = (void *)frame;
    struct ether_arp *arp = (void *)(frame + ETH_HLEN);
    int fd = open_nic(name, ETH_P_ARP, header->ether_shost);

    memset(header->ether_dhost, 0xff, ETH_ALEN);
    header->ether_type = htons(ETH_P_ARP);
    arp->ea_hdr = (struct arphdr) { htons(ARPHRD_ETHER), htons(ETH_P_IP),
                                    ETH_ALEN, 4, htons(ARPOP_REQUEST) };
    memcpy(arp->arp_sha, header->ether_shost, ETH_ALEN);
    memcpy(arp->arp_spa, (uint8_t[]) { 10, 77, 0, 2 }, 4);
    memcpy(arp->arp_tpa, (uint8_t[]) { 10, 77, 0, 1 }, 4);
    for (uint32_t turn = 0; ; turn++) {
        go_to_cpu(turn % n_cpus);
        exchange(fd, fd, frame, is_arp_reply);
        self->rounds++;
        pause_ms(PAUSE_MS);
    }
}

/* A port of virtio-serial, or the random numbers of the host. */
static void use_character_device(void)
{
    char path[32], bytes[16] = "guest was here\n";
    bool reads = !strcmp(self->name, "hwrng");
    int fd;

    snprintf(path, sizeof(path), "/dev/%s", self->name);
    fd = open(path, reads ? O_RDONLY : O_WRONLY);
    if (fd < 0) {
        complain("it cannot be opened");
        return;
    }
    for (;;) {
        if ((reads ? read(fd, bytes, sizeof(bytes))
                   : write(fd, bytes, sizeof(bytes))) <= 0) {
            complain("it cannot be used");
        }
        self->rounds++;
        pause_ms(5 * PAUSE_MS);
    }
}

static void work(const char *what)
{
    char path[64], *colon = strchr(what, ':');
    struct stat info;

    if (!strcmp(what, "memory")) {
        use_memory();
    } else if (!strncmp(what, "cpu", 3)) {
        use_cpu(atoi(what + 3));
    } else if (colon) {
        use_two_nics(self->name, colon + 1);
    }
    snprintf(path, sizeof(path), "/sys/class/net/%s", what);
    if (!access(path, F_OK)) {
        use_nic(what);
    }
    snprintf(path, sizeof(path), "/dev/%s", what);
    if (stat(path, &info)) {
        complain("it is not there");
    } else if (S_ISBLK(info.st_mode)) {
        use_disk();
    } else {
        use_character_device();
    }
}

static void hire(Worker *worker, const char *what)
{
    snprintf(worker->name, sizeof(worker->name), "%.*s",
             (int)strcspn(what, ":"), what);
    worker->pid = fork();
    if (worker->pid == 0) {
        self = worker;
        work(what);
        exit(EXIT_FAILURE);
    }
}

/* One that has ended is wrong, whatever it says. */
static void bury(int n)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (int i = 0; i < n; i++) {
            if (workers[i].pid == pid) {
                workers[i].errors++;
                printf("guest: %s: it has died, signal %d\n", workers[i].name,
                       WIFSIGNALED(status) ? WTERMSIG(status) : 0);
            }
        }
    }
}

int main(int argc, char **argv)
{
    int n = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    workers = mmap(NULL, MAX_WORKERS * sizeof(*workers), PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    hire(&workers[n++], "memory");
    for (int cpu = 0; cpu < n_cpus && n < MAX_WORKERS; cpu++) {
        char name[16];

        snprintf(name, sizeof(name), "cpu%d", cpu);
        hire(&workers[n++], name);
    }
    for (int i = 1; i < argc && n < MAX_WORKERS; i++) {
        hire(&workers[n++], argv[i]);
    }
    for (;;) {
        char line[1024];
        int length = 0;
        uint32_t errors = 0;

        pause_ms(LINE_MS);
        bury(n);
        for (int i = 0; i < n; i++) {
            errors += workers[i].errors;
            length += snprintf(line + length, sizeof(line) - length, ", %s %u",
                               workers[i].name, workers[i].rounds);
        }
        printf("guest: errors %u%s\n", errors, line);
    }
}
