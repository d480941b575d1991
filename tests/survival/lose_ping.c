/*
 * For LD_PRELOAD: a connection that ends right after the package of postcopy
 *
 * The PING with value 4 is what the source sends next.  What stands before it
 * is sent, and the connection ends when there is a file $LOSE_PING_WHEN: the
 * destination has started the guest by then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

typedef ssize_t SendMsg(int fd, const struct msghdr *msg, int flags);

static const char ping[] = "\x08\0\x02\0\x04\0\0\0\x04";

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    static int done;
    SendMsg *real = (SendMsg *)dlsym(RTLD_NEXT, "sendmsg");

    for (size_t i = 0; i < msg->msg_iovlen && !done; i++) {
        const struct iovec *iov = &msg->msg_iov[i];
        const char *at = memmem(iov->iov_base, iov->iov_len, ping,
                                sizeof(ping) - 1);

        if (at) {
            struct iovec before[i + 1];
            struct msghdr part = *msg;
            ssize_t sent;

            memcpy(before, msg->msg_iov, sizeof(before));
            before[i].iov_len = at - (const char *)iov->iov_base;
            part.msg_iov = before;
            part.msg_iovlen = i + 1;
            sent = i || before[i].iov_len ? real(fd, &part, flags) : 0;
            while (access(getenv("LOSE_PING_WHEN"), F_OK)) {
                usleep(1000);
            }
            shutdown(fd, SHUT_WR);
            done = 1;
            if (sent) {
                return sent;
            }
        }
    }
    return real(fd, msg, flags);
}
