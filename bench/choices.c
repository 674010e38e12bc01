/*
 * An nginx module that times the choice of a server alone, in any upstream, by whatever balances it:
 * the very callbacks that nginx calls for a request (peer.init, get, free), with no connection and no
 * response around them.
 *
 * "choices UPSTREAM;" in a location. GET LOCATION?N makes choices for N milliseconds of this thread's
 * CPU time and answers "choices=N ns=N failed=N". As many requests as the load of the other
 * rows has are on servers at a time: so many are chosen for, then all are released. Each has another
 * client's address and other $args. Requests are made outside of what is timed.
 */
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include <time.h>

/* A pool has room for all that one request needs, so that what is timed asks for no memory. */
enum { IN_FLIGHT = 64, LONGEST = 60000, POOL = 16384 };

typedef struct {
    ngx_pool_t          *pool;
    ngx_http_request_t  *request;
    ngx_connection_t     client;
    struct sockaddr_in   address;
    u_char               args[NGX_INT_T_LEN + sizeof("key=")];
    ngx_int_t            taken;
} choice_t;

static char *set_choices(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static void *create_conf(ngx_conf_t *cf);

static ngx_command_t commands[] = {
    { ngx_string("choices"), NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1, set_choices, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL },
    ngx_null_command
};

static ngx_http_module_t context = {
    NULL, NULL, NULL, NULL, NULL, NULL, create_conf, NULL
};

ngx_module_t choices_module = {
    NGX_MODULE_V1, &context, commands, NGX_HTTP_MODULE, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NGX_MODULE_V1_PADDING
};

/* What nginx looks for in a module that it loads; its own build makes this for each. */
ngx_module_t *ngx_modules[] = { &choices_module, NULL };
char *ngx_module_names[] = { "choices_module", NULL };
char *ngx_module_order[] = { NULL };

typedef struct {
    ngx_http_upstream_srv_conf_t  *upstream;
} conf_t;

static void *
create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(conf_t));
}

static uint64_t
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* All bits of a number spread over all others: the next one is quite another. */
static uint64_t
mix(uint64_t n)
{
    n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9;
    n = (n ^ (n >> 27)) * 0x94d049bb133111eb;
    return n ^ (n >> 31);
}

/* A request like r, of another client and with other arguments, in a pool of its own. */
static ngx_int_t
make(ngx_http_request_t *r, choice_t *choice, uint64_t seed)
{
    ngx_http_request_t         *made = ngx_palloc(choice->pool, sizeof(*made));
    ngx_http_core_main_conf_t  *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);

    if (made == NULL) {
        return NGX_ERROR;
    }
    *made = *r;
    made->pool = choice->pool;
    made->main = made;
    made->upstream = ngx_pcalloc(made->pool, sizeof(ngx_http_upstream_t));
    made->variables = ngx_pcalloc(made->pool, cmcf->variables.nelts * sizeof(ngx_http_variable_value_t));
    if (made->upstream == NULL || made->variables == NULL) {
        return NGX_ERROR;
    }
    made->upstream->peer.log = r->connection->log;
    made->upstream->peer.log_error = NGX_ERROR_ERR;

    choice->client = *r->connection;
    ngx_memzero(&choice->address, sizeof(choice->address));
    choice->address.sin_family = AF_INET;
    choice->address.sin_addr.s_addr = (in_addr_t) mix(seed);
    choice->client.sockaddr = (struct sockaddr *) &choice->address;
    choice->client.socklen = sizeof(choice->address);
    made->connection = &choice->client;
    made->args.data = choice->args;
    made->args.len = (size_t) (ngx_sprintf(choice->args, "key=%uL", mix(~seed) >> 24) - choice->args);
    choice->request = made;
    return NGX_OK;
}

/* What nginx does with the pool of a request that has ended, but that the memory is kept for the next. */
static void
end(choice_t *choice)
{
    ngx_pool_cleanup_t  *c;

    for (c = choice->pool->cleanup; c; c = c->next) {
        if (c->handler) {
            c->handler(c->data);
        }
    }
    choice->pool->cleanup = NULL;
    ngx_reset_pool(choice->pool);
}

/* So many choices, and their releases: the nanoseconds that it took. */
static uint64_t
choose(ngx_http_upstream_srv_conf_t *upstream, choice_t *choices, ngx_uint_t *failed)
{
    uint64_t  began = now();
    int       i;

    for (i = 0; i < IN_FLIGHT; i++) {
        ngx_http_request_t     *r = choices[i].request;
        ngx_peer_connection_t  *pc = &r->upstream->peer;

        choices[i].taken = upstream->peer.init(r, upstream) == NGX_OK ? pc->get(pc, pc->data) : NGX_ERROR;
    }
    for (i = 0; i < IN_FLIGHT; i++) {
        ngx_peer_connection_t  *pc = &choices[i].request->upstream->peer;

        if (choices[i].taken == NGX_OK && pc->sockaddr != NULL) {
            pc->free(pc, pc->data, 0);
        } else {
            (*failed)++;
        }
    }
    return now() - began;
}

static ngx_int_t
answer(ngx_http_request_t *r)
{
    static choice_t  choices[IN_FLIGHT];
    static uint64_t  seed;

    conf_t       *conf = ngx_http_get_module_loc_conf(r, choices_module);
    ngx_int_t     wanted = ngx_atoi(r->args.data, r->args.len);
    ngx_uint_t    failed = 0;
    uint64_t      count = 0, took = 0;
    ngx_buf_t    *body;
    ngx_chain_t   out;
    int           i, made = IN_FLIGHT;

    if (wanted < 1 || wanted > LONGEST) {
        return NGX_HTTP_BAD_REQUEST;
    }
    for (i = 0; i < IN_FLIGHT; i++) {
        choices[i].pool = ngx_create_pool(POOL, r->connection->log);
        if (choices[i].pool == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }
    while (took < (uint64_t) wanted * 1000000 && made == IN_FLIGHT) {
        for (made = 0; made < IN_FLIGHT && make(r, &choices[made], seed++) == NGX_OK; made++) { /* void */ }
        if (made == IN_FLIGHT) {
            took += choose(conf->upstream, choices, &failed);
            count += IN_FLIGHT;
        }
        for (i = 0; i < IN_FLIGHT; i++) {
            end(&choices[i]);
        }
    }
    for (i = 0; i < IN_FLIGHT; i++) {
        ngx_destroy_pool(choices[i].pool);
    }
    if (made < IN_FLIGHT || ngx_http_discard_request_body(r) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    body = ngx_create_temp_buf(r->pool, 128);
    if (body == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    body->last = ngx_sprintf(body->last, "choices=%uL ns=%uL failed=%ui\n", count, took, failed);
    body->last_buf = body->last_in_chain = 1;
    out.buf = body;
    out.next = NULL;
    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = body->last - body->pos;
    if (ngx_http_send_header(r) != NGX_OK) {
        return NGX_ERROR;
    }
    return ngx_http_output_filter(r, &out);
}

static char *
set_choices(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    conf_t                    *mine = conf;
    ngx_str_t                 *words = cf->args->elts;
    ngx_http_core_loc_conf_t  *location = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    ngx_url_t                  url;

    if (mine->upstream) {
        return "is duplicate";
    }
    ngx_memzero(&url, sizeof(url));
    url.url = words[1];
    url.no_resolve = 1;
    mine->upstream = ngx_http_upstream_add(cf, &url, 0);
    if (mine->upstream == NULL) {
        return NGX_CONF_ERROR;
    }
    location->handler = answer;
    return NGX_CONF_OK;
}
