#include "start.h"

#include "descriptors.h"
#include "generation.h"
#include "paged.h"
#include "process.h"

int pm_start(void)
{
    int error = pm_generation_start();

    pm_note_standard();
    if (!error)
        error = pm_process_start();
    return error ? error : pm_paged_start();
}
