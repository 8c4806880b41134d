#include "pager/opening.h"

#include <stdlib.h>
#include <string.h>

#include "pager/mechanisms/channel.h"
#include "pager/mechanisms/host.h"
#include "pager/mechanisms/taking.h"

static char *copy_text(const char *text, int *failed)
{
    char *copy = text ? strdup(text) : NULL;

    *failed |= text && !copy;
    return copy;
}

static struct pg_injection *copy_injections(const struct pg_config *config, int *failed)
{
    size_t bytes = config->injection_count * sizeof *config->injections;
    struct pg_injection *copy = bytes ? malloc(bytes) : NULL;

    *failed |= bytes && !copy;
    if (copy)
        memcpy(copy, config->injections, bytes);
    return copy;
}

static void copy_helper(struct pg_opening *opening, const struct pg_helper *helper, int *failed)
{
    opening->helper = *helper;
    opening->helper.given_up = &opening->given_up;
    if (helper->host)
        pg_host_hold(helper->host);
    opening->helper.argv = (const char *const *)pg_copy_arguments(helper->argv);
    *failed |= !opening->helper.argv;
    opening->config.helper = &opening->helper;
}

struct pg_opening *pg_new_opening(const struct pg_config *config)
{
    struct pg_opening *opening = calloc(1, sizeof *opening);
    int failed = 0;

    if (!opening)
        return NULL;
    opening->config = *config;
    opening->config.label = copy_text(config->label, &failed);
    opening->config.name = copy_text(config->name, &failed);
    opening->config.path = copy_text(config->path, &failed);
    opening->config.spill_directory = copy_text(config->spill_directory, &failed);
    opening->config.injections = copy_injections(config, &failed);
    if (config->helper)
        copy_helper(opening, config->helper, &failed);
    if (config->compression) {
        opening->compression = *config->compression;
        opening->compression.spill = copy_text(config->compression->spill, &failed);
        opening->config.compression = &opening->compression;
    }
    if (config->taking) {
        failed |= pg_copy_taking(&opening->taking, config->taking);
        opening->config.taking = &opening->taking;
    }
    if (!failed)
        return opening;
    pg_free_opening(opening);
    return NULL;
}

void pg_free_opening(struct pg_opening *opening)
{
    if (!opening)
        return;
    free((char *)opening->config.label);
    free((char *)opening->config.name);
    free((char *)opening->config.path);
    free((char *)opening->config.spill_directory);
    free((struct pg_injection *)opening->config.injections);
    free((char *)opening->compression.spill);
    pg_free_taking(&opening->taking);
    pg_free_arguments((char **)opening->helper.argv);
    if (opening->helper.host)
        pg_host_release(opening->helper.host);
    free(opening);
}
