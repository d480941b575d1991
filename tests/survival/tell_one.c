/*
 * For LD_PRELOAD: which thread is told that TCP has given up
 *
 * The kernel tells it once.  $TELL is "recvmsg" or "sendmsg": the thread that
 * calls the other one comes too late, and sees an end.  $LATE is which of the
 * two takes its time then; less of it if $TELL is "nobody", and both are told
 * of whatever happens.  The main thread is left alone.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOON        25000       /* it may try several times */
#define A_MOMENT    100000
#define LATER       300000

static bool is_in(const char *variable, const char *name)
{
    return gettid() != getpid() && !strcmp(getenv(variable), name);
}

static void before(const char *other, int fd, short events)
{
    struct pollfd one = { .fd = fd, .events = events };

    if (is_in("TELL", other) && poll(&one, 1, -1) == 1 &&
        (one.revents & (POLLERR | POLLHUP))) {
        usleep(A_MOMENT);
    }
}

static ssize_t after(const char *name, ssize_t ret)
{
    int saved = errno;

    if (ret <= 0 && saved != EAGAIN && is_in("LATE", name)) {
        usleep(strcmp(getenv("TELL"), "nobody") ? LATER : SOON);
    }
    errno = saved;
    return ret;
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");

    before("sendmsg", fd, POLLIN);
    return after("recvmsg", real(fd, msg, flags));
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT,
                                                             "sendmsg");

    before("recvmsg", fd, POLLOUT);
    return after("sendmsg", real(fd, msg, flags));
}
