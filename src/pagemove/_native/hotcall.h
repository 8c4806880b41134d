/* remap_anon_pages as fast as Python can call it. */
#ifndef PAGEMOVE_HOTCALL_H
#define PAGEMOVE_HOTCALL_H

#include <Python.h>

extern PyMethodDef pm_hotcall_method;

/* Set what answers the calls that the hot path does not: a callable with the same signature. */
void pm_hotcall_set_fallback(PyObject *callable);

#endif
