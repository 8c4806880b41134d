#include "hotcall.h"

#include "moves.h"

/* Moves up to here keep the GIL: releasing it costs more than they take. */
enum { HOT_PAGES = 16 };

static PyObject *fallback;

void pm_hotcall_set_fallback(PyObject *callable)
{
    PyObject *before = fallback;

    Py_INCREF(callable);
    fallback = callable;
    Py_XDECREF(before);
}

static PyObject *call_fallback(PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    Py_ssize_t keywords = names ? PyTuple_Size(names) : 0;
    PyObject *positional = PyTuple_New(nargs), *named = PyDict_New(), *result = NULL;

    if (!positional || !named)
        goto done;
    for (Py_ssize_t i = 0; i < nargs; i++) {
        Py_INCREF(args[i]);
        if (PyTuple_SetItem(positional, i, args[i]))
            goto done;
    }
    for (Py_ssize_t i = 0; i < keywords; i++)
        if (PyDict_SetItem(named, PyTuple_GetItem(names, i), args[nargs + i]))
            goto done;
    result = PyObject_Call(fallback, positional, named);
done:
    Py_XDECREF(positional);
    Py_XDECREF(named);
    return result;
}

/* One argument that is memory: an address, or a buffer held while the pages move. */
struct place {
    uint64_t address;
    Py_buffer view; /* view.obj is NULL for an address */
};

static int number(PyObject *argument, uint64_t *value)
{
    if (!PyLong_CheckExact(argument))
        return -1;
    /* The same of long long goes through an array of bytes in CPython, and takes twice the time. */
    *value = PyLong_AsUnsignedLong(argument);
    if (*value == (unsigned long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
    }
    return 0;
}

static int hold(PyObject *argument, uint64_t length, struct place *place)
{
    place->view.obj = NULL;
    if (PyLong_CheckExact(argument))
        return number(argument, &place->address);
    if (!PyObject_CheckBuffer(argument))
        return -1;
    if (PyObject_GetBuffer(argument, &place->view, PyBUF_STRIDES)) {
        PyErr_Clear();
        place->view.obj = NULL;
        return -1;
    }
    place->address = (uint64_t)(uintptr_t)place->view.buf;
    if (place->view.readonly || (uint64_t)place->view.len < length ||
        !PyBuffer_IsContiguous(&place->view, 'C'))
        return -1;
    return 0;
}

static void let_go(struct place *place)
{
    if (place->view.obj)
        PyBuffer_Release(&place->view);
}

/* Bytes moved, as an integer, or NULL where the fallback has to look into it. */
static PyObject *try_move(PyObject *const *args, Py_ssize_t nargs)
{
    struct pm_process *process;
    struct place dst, src;
    uint64_t length, flags = 0;
    int64_t moved = -1;

    if (number(args[2], &length) || (nargs == 4 && number(args[3], &flags)) || flags > 1 ||
        pm_process_get(&process))
        return NULL;
    if (length > HOT_PAGES * process->page_size && length != process->huge_page_size)
        return NULL;
    if (!hold(args[0], length, &dst)) {
        if (!hold(args[1], length, &src))
            moved = pm_move(process, dst.address, src.address, length, (unsigned)flags, 0);
        let_go(&src);
    }
    let_go(&dst);
    if (moved <= 0)
        return NULL;
    /* Most often it is what was asked for: a new integer would cost a tenth of the call. */
    if ((uint64_t)moved == length) {
        Py_INCREF(args[2]);
        return args[2];
    }
    return PyLong_FromLongLong(moved);
}

static PyObject *remap_anon_pages(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *names)
{
    (void)self;
    if (!names && (nargs == 3 || nargs == 4)) {
        PyObject *moved = try_move(args, nargs);
        if (moved || PyErr_Occurred())
            return moved;
    }
    return call_fallback(args, nargs, names);
}

PyDoc_STRVAR(
    doc,
    "remap_anon_pages(dst, src, length, flags=0)\n--\n\n"
    "Move the pages mapped at `src` to `dst`, atomically, without copying a byte.\n"
    "\n"
    "The physical pages in ``[src, src+length)`` become those of ``[dst, dst+length)``, page by\n"
    "page, and huge page by huge page where both sides are 2 MiB aligned. The source is left a\n"
    "hole that reads as zeros. No mapping is created, removed, split or resized.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "dst, src : int or writable C-contiguous buffer\n"
    "    Page-aligned addresses in private anonymous writable memory, or objects whose first\n"
    "    byte is at one (`Memory`, NumPy arrays made by `empty`).\n"
    "length : int\n"
    "    Bytes, a whole number of pages; at most the length of a buffer that was passed.\n"
    "flags : int\n"
    "    0 or `RAP_ALLOW_SRC_HOLES`: skip holes in the source and count them as moved.\n"
    "\n"
    "Returns\n"
    "-------\n"
    "int\n"
    "    Bytes moved, never 0. Fewer than `length`: something stopped the move there, and the\n"
    "    same call on the rest says what.\n"
    "\n"
    "Raises\n"
    "------\n"
    "RemapError\n"
    "    Nothing was moved; `errno` and the message say why. EINVAL: arguments or mappings do\n"
    "    not allow it. `SourceHole` (ENOENT), `DestinationMapped` (EEXIST), `PageShared` (EBUSY).\n"
    "    EFAULT: a poisoned or guard page. ENOMEM: no memory for page tables.\n"
    "UnsupportedError\n"
    "    The kernel cannot, or this process may not.\n"
    "ValueError, BufferError, TypeError\n"
    "    `length` exceeds a buffer; a buffer is read-only; an argument is neither an address nor\n"
    "    a C-contiguous buffer.\n"
    "\n"
    "Notes\n"
    "-----\n"
    "Costs one system call, about a microsecond for one page, and one TLB shootdown if another\n"
    "thread of the process runs; kernels with the stale-EAGAIN defect need one look beforehand.\n"
    "Moves of up to 16 pages, or one huge page, keep the GIL. Follows A. Arcangeli's\n"
    "``remap_anon_pages`` of 2014, on UFFDIO_MOVE of ioctl_userfaultfd(2).\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> import pagemove\n"
    ">>> with pagemove.Memory(4096) as src, pagemove.Memory(4096) as dst:\n"
    "...     memoryview(src)[:5] = b'hello'\n"
    "...     moved = pagemove.remap_anon_pages(dst, src, 4096)\n"
    "...     (moved, bytes(memoryview(dst)[:5]), bytes(memoryview(src)[:5]))\n"
    "(4096, b'hello', b'\\x00\\x00\\x00\\x00\\x00')\n");

PyMethodDef pm_hotcall_method = {
    "remap_anon_pages",
    (PyCFunction)(void (*)(void))remap_anon_pages,
    METH_FASTCALL | METH_KEYWORDS,
    doc,
};
