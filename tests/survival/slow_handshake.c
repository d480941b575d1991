/*
 * For LD_PRELOAD: a thread takes its time before it begins a handshake of TLS
 *
 * What the other side has said meanwhile is there at once.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

typedef int Handshake(void *session);

int gnutls_handshake(void *session)
{
    Handshake *real = (Handshake *)dlsym(RTLD_NEXT, "gnutls_handshake");

    if (gettid() != getpid()) {
        usleep(300000);
    }
    return real(session);
}
