/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A multiboot guest that knows what each part of its memory has to hold.
 *
 * BOOK is written once and then only read: the first word of each 64 bytes is made from its
 * address. DESK is written 50 times a second, each page of it with the number of the pass. Before,
 * all of it is compared, and so many pages of BOOK that all have their turn in a second or two.
 *
 * The state is where the tests look for it. In between it sleeps, so that the rate at which memory
 * gets dirty depends on time and not on how fast the machine is.
 */
        .set    MULTIBOOT, 0x1badb002
        .set    MEMORY_MAP, 2                   /* a loader has to tell of memory */
        .set    KEY, 0x9e3779b1
        .set    PAGE, 4096
        .set    LINE, 64

        .set    DESK, 0x200000
        .set    DESK_END, 0x300000
        .set    BOOK, 0x400000
        .set    BOOK_END, 0x2000000
        .set    PAGES, 128                      /* of BOOK with each pass */

        .set    PIC, 0x20
        .set    PIT, 0x40
        .set    PIT_HZ, 1193182
        .set    HZ, 50
        .set    TICK, 32                        /* the vector of IRQ 0 */

        .text
        .globl  _start
header: .long   MULTIBOOT, MEMORY_MAP, -(MULTIBOOT + MEMORY_MAP)

        .org    0x40
state:  .ascii  "DESK"
passes: .long   0
errors: .long   0
rounds: .long   0                               /* through all of BOOK */

_start: cli
        cld
        mov     $stack, %esp
        lgdt    gdt_register
        ljmp    $8, $1f
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        call    write_book
        call    start_timer
        mov     $BOOK, %ebp
        sti
1:      hlt
        call    check_desk
        mov     $PAGES, %esi
2:      call    check_page
        dec     %esi
        jnz     2b
        incl    passes
        call    write_desk
        jmp     1b

write_book:
        mov     $BOOK, %edi
1:      imul    $KEY, %edi, %eax
        mov     %eax, (%edi)
        add     $LINE, %edi
        cmp     $BOOK_END, %edi
        jb      1b
        ret

/* The page at %ebp, which becomes the next one. */
check_page:
        lea     PAGE(%ebp), %ecx
1:      imul    $KEY, %ebp, %eax
        cmp     %eax, (%ebp)
        je      2f
        incl    errors
2:      add     $LINE, %ebp
        cmp     %ecx, %ebp
        jb      1b
        cmp     $BOOK_END, %ebp
        jb      3f
        mov     $BOOK, %ebp
        incl    rounds
3:      ret

/* Each page holds the number of the last pass at its begin, the complement at its end. */
check_desk:
        mov     passes, %eax
        test    %eax, %eax
        jz      3f
        mov     %eax, %edx
        not     %edx
        mov     $DESK, %edi
1:      cmp     %eax, (%edi)
        jne     4f
        cmp     %edx, PAGE - 4(%edi)
        je      2f
4:      incl    errors
2:      add     $PAGE, %edi
        cmp     $DESK_END, %edi
        jb      1b
3:      ret

write_desk:
        mov     passes, %eax
        mov     %eax, %edx
        not     %edx
        mov     $DESK, %edi
1:      mov     %eax, (%edi)
        mov     %edx, PAGE - 4(%edi)
        add     $PAGE, %edi
        cmp     $DESK_END, %edi
        jb      1b
        ret

        .macro  outb port, value
        mov     $\value, %al
        out     %al, $\port
        .endm

start_timer:
        mov     $tick, %eax
        mov     %ax, idt + 8 * TICK
        shr     $16, %eax
        mov     %ax, idt + 8 * TICK + 6
        movl    $8, idt + 8 * TICK + 2          /* the code segment; its other half comes next */
        movb    $0x8e, idt + 8 * TICK + 5       /* an interrupt gate */
        lidt    idt_register
        outb    PIC, 0x11
        outb    PIC + 1, TICK
        outb    PIC + 1, 4
        outb    PIC + 1, 1
        outb    PIC + 1, 0xfe                   /* none but the timer's */
        outb    PIT + 3, 0x34
        outb    PIT, (PIT_HZ / HZ) & 0xff
        outb    PIT, (PIT_HZ / HZ) >> 8
        ret

tick:   push    %eax
        outb    PIC, 0x20                       /* end of interrupt */
        pop     %eax
        iret

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              /* code, flat */
        .quad   0x00cf93000000ffff              /* data, flat */
gdt_register:
        .word   gdt_register - gdt - 1
        .long   gdt
idt_register:
        .word   8 * (TICK + 1) - 1
        .long   idt

        .bss
        .balign 16
idt:    .skip   8 * (TICK + 1)
        .skip   4096
stack:
