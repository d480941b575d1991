/*
 * The demo guest's workload: memory that knows what it must contain
 *
 * Every word depends on its page, its place in the page and the number of
 * times that the page has been written, so the workload can tell at any moment
 * what each word has to be.  A page that a migration lost, swapped, tore or
 * brought in an older state is an error, and is seen: no page is ever written
 * before it was checked from end to end.  To hide, *all* of memory, this
 * program's own counters included, would have to be old by the same round; and
 * then the counter on the console would go back.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum {
    PAGE = 4096,
    WORDS = PAGE / sizeof(uint64_t),
    PAGES_PER_MIB = (1 << 20) / PAGE,
    /* One page in four is written each round, so that a migration meets pages
     * that change under its hands as well as pages that it sends only once. */
    ROUNDS_PER_WRITE = 4,
    /* One state in eight is all zeros: zero pages take a way of their own
     * through a migration, in both directions. */
    ZERO_STATES = 8,
    MAX_COMPLAINTS = 10,
    NS_PER_S = 1000 * 1000 * 1000,
    ROUND_NS = NS_PER_S,
};

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

/* What word 0 of a page is, and by how much each word differs from the last. */
typedef struct {
    uint64_t first, step;
} Pattern;

static Pattern pattern(uint32_t page, uint32_t generation)
{
    uint64_t key = mix((uint64_t)page << 32 | generation);

    if ((page + generation) % ZERO_STATES == 0) {
        return (Pattern) { 0, 0 };
    }
    return (Pattern) { key, key | 1 };
}

static bool is_due(uint32_t page, uint32_t round)
{
    return (page + round) % ROUNDS_PER_WRITE == 0;
}

/* How often a page has been written before this round, the first fill included. */
static uint32_t generation_before(uint32_t page, uint32_t round)
{
    uint32_t due_rounds = (round - 1 + page % ROUNDS_PER_WRITE)
                          / ROUNDS_PER_WRITE;
    return 1 + due_rounds;
}

static void fill(volatile uint64_t *words, Pattern p)
{
    for (int i = 0; i < WORDS; i++, p.first += p.step) {
        words[i] = p.first;
    }
}

static bool holds(const volatile uint64_t *words, Pattern p)
{
    for (int i = 0; i < WORDS; i++, p.first += p.step) {
        if (words[i] != p.first) {
            return false;
        }
    }
    return true;
}

static void complain(uint32_t page, const volatile uint64_t *words,
                     uint32_t generation)
{
    const char *what = holds(words, (Pattern) { 0, 0 })
                       ? "is empty" : "holds what it never held";

    for (uint32_t old = 1; old < generation; old++) {
        if (holds(words, pattern(page, old))) {
            what = "is from an earlier round";
        }
    }
    printf("guest: page %u %s\n", page, what);
}

/* Writing goes on all through a round, whatever the speed of the machine. */
static void wait_for_turn(const struct timespec *start, uint64_t ns)
{
    struct timespec turn = *start;

    ns += turn.tv_nsec;
    turn.tv_sec += ns / NS_PER_S;
    turn.tv_nsec = ns % NS_PER_S;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &turn, NULL);
}

/* Returns the number of pages that were not as this program had left them. */
static uint32_t play_round(uint64_t *memory, uint32_t pages, uint32_t round,
                           uint32_t complaints_left)
{
    struct timespec start;
    uint32_t errors = 0;

    clock_gettime(CLOCK_MONOTONIC, &start);
    for (uint32_t page = 0; page < pages; page++) {
        uint64_t *words = memory + (size_t)page * WORDS;
        uint32_t generation = generation_before(page, round);
        bool good = holds(words, pattern(page, generation));

        if (!good && errors++ < complaints_left) {
            complain(page, words, generation);
        }
        if (is_due(page, round)) {
            fill(words, pattern(page, generation + 1));
        } else if (!good) {
            fill(words, pattern(page, generation)); /* count it once */
        }
        if ((page + 1) % PAGES_PER_MIB == 0) {
            wait_for_turn(&start, (uint64_t)ROUND_NS * (page + 1) / pages);
        }
    }
    return errors;
}

int main(int argc, char **argv)
{
    uint32_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
    uint32_t pages = mib * PAGES_PER_MIB;
    uint64_t errors = 0;
    uint64_t *memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        perror("guest: mmap");
        return EXIT_FAILURE;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (uint32_t page = 0; page < pages; page++) {
        fill(memory + (size_t)page * WORDS, pattern(page, 1));
    }
    for (uint32_t round = 1;; round++) {
        uint32_t left = errors < MAX_COMPLAINTS ? MAX_COMPLAINTS - errors : 0;

        errors += play_round(memory, pages, round, left);
        printf("guest: round %u, %u MiB checked, errors %llu\n",
               round, mib, (unsigned long long)errors);
    }
}
