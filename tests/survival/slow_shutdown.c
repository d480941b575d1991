/*
 * For LD_PRELOAD: whoever shuts down a socket does not come back at once
 *
 * Other threads have the time to notice it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int Shutdown(int fd, int how);

int shutdown(int fd, int how)
{
    Shutdown *real = (Shutdown *)dlsym(RTLD_NEXT, "shutdown");
    int ret = real(fd, how);

    usleep(300000);
    return ret;
}
