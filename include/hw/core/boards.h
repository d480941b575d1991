/*
 * Where QEMU 11.0 has it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_CORE_BOARDS_H
#define HW_CORE_BOARDS_H

#include "hw/boards.h"

#endif
