/* What has to be there before anything else of the core is used. */
#ifndef PAGEMOVE_START_H
#define PAGEMOVE_START_H

/* Prepare it; called again it does nothing. Before there are threads, and before the program can
 * close or replace its standard streams. 0, or -errno of madvise(MADV_WIPEONFORK). */
int pm_start(void);

#endif
