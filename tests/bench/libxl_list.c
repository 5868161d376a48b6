/*
 * Lists the disks of domains as libxl reads them back: the measure that xencolo is compared with.
 *
 *   libxl_list ROUNDS FIRST LAST
 *
 * The disks of the last round go to stdout, a line each, tab-separated; before them the seconds of each
 * round. The domains are FIRST to LAST.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <xentoollog.h>

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void show(uint32_t domid, const libxl_device_disk *disk)
{
    printf("%u\t%u\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%d\t%s\t%s\t%s\n", domid, disk->backend_domid,
           disk->vdev, disk->pdev_path ? disk->pdev_path : "",
           libxl_disk_backend_to_string(disk->backend), disk->removable, disk->readwrite,
           disk->is_cdrom, libxl_defbool_val(disk->colo_enable),
           disk->colo_host ? disk->colo_host : "", disk->colo_port,
           disk->colo_export ? disk->colo_export : "", disk->active_disk ? disk->active_disk : "",
           disk->hidden_disk ? disk->hidden_disk : "");
}

int main(int argc, char **argv)
{
    int rounds = argc == 4 ? atoi(argv[1]) : 0;
    xentoollog_logger *logger =
        (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    libxl_ctx *ctx;

    if (!rounds || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, logger))
        return 2;
    for (int round = 1; round <= rounds; round++) {
        double began = now();
        double shown = 0;

        for (uint32_t domid = atoi(argv[2]); domid <= (uint32_t)atoi(argv[3]); domid++) {
            int count = 0;
            libxl_device_disk *disks = libxl_device_disk_list(ctx, domid, &count);
            double pause = now();

            for (int i = 0; round == rounds && i < count; i++)
                show(domid, &disks[i]);
            shown += now() - pause;
            libxl_device_disk_list_free(disks, count);
        }
        fprintf(stderr, "%.6f\n", now() - began - shown);
    }
    libxl_ctx_free(ctx);
    xtl_logger_destroy(logger);
    return 0;
}
