/* What those above the engine do for it (engine/above.h). */
#ifndef PAGEMOVE_PAGER_ABOVE_H
#define PAGEMOVE_PAGER_ABOVE_H

#include "pager/engine/above.h"

extern const struct pg_above pg_above;

#endif
