package Bench::System;

# The systems that are measured, each one process tree in a directory of its own:
# stock nginx, nginx with the module, HAProxy, and nginx with a balancer in Lua; and
# the backends that all their servers are addresses of.

use strict;
use warnings;

use Bench::Cpu qw(processors pin);
use Bench::Load qw(in_order);
use RegistryTest::Client ();
use RegistryTest::Process qw(
    free_port temp_dir slurp spew spawn alive children stop_process wait_until binary_info
);

my ($HERE) = __FILE__ =~ m{^(.*)/lib/Bench/System\.pm$};
my $LUA_MODULES = '/usr/lib/nginx/modules';

# What nginx is run, and with which module.
our ($NGINX, $MODULE);

# What a system has that is not told otherwise.
my %DEFAULT = (
    workers => 1, keepalive => 1000, log => 'error', register => 1, size => '32m', env => {}, method => 'least_conn',
    registry => 'heartbeat_ttl 1h;',
);

# Server number I of many: an address of 127.0.0.0/8 from 127.0.1.1 on, so that each
# has ports of its own for connections.
sub server_host {
    my ($i) = @_;
    return sprintf '127.0.%d.%d', 1 + int($i / 250), 1 + $i % 250;
}

# The most descriptors that a process may have here.
sub descriptors {
    my ($hard) = slurp('/proc/self/limits') =~ /^Max open files\s+\S+\s+(\d+)/m;
    return defined $hard && $hard < 500_000 ? $hard : 500_000;
}

# Whether a system can run here: an empty text, or what is missing.
sub missing {
    my ($system, $servers) = @_;
    if ($system eq 'haproxy') {
        return 'HAProxy is not installed: apt-get install haproxy' unless grep { -x "$_/haproxy" } _path();
        my $needed = 1.4 * $servers + 2000;
        return "HAProxy needs about $needed open files, and ulimit -n allows " . descriptors()
            if descriptors() < $needed;
    }
    if ($system eq 'redis') {
        return 'Redis is not installed: scripts/setup' unless grep { -x "$_/redis-server" } _path();
    }
    if ($system eq 'lua') {
        return 'the Lua module is not installed: apt-get install libnginx-mod-http-lua lua-cjson'
            unless -f "$LUA_MODULES/ngx_http_lua_module.so";
        my $why = _try(_lua_conf());
        return "nginx does not load Debian's Lua module: $why" if $why;
    }
    return '';
}

sub _path { return split(/:/, $ENV{PATH} || ''), '/usr/sbin' }

# nginx -t of a whole configuration: empty when it is good, else what nginx said first.
sub _try {
    my ($conf) = @_;
    my $dir = temp_dir();
    spew("$dir/nginx.conf", $conf->($dir));
    my $said = `'$NGINX' -t -e stderr -p '$dir/' -c '$dir/nginx.conf' 2>&1`;
    return '' if $? == 0;
    my ($line) = $said =~ /\[emerg\] (?:\d+#\d+: )?(.*)/;
    return $line || $said;
}

# Whether stock nginx can keep so many servers in a zone of that size.
sub stock_fits {
    my ($servers, $size) = @_;
    my $self = bless { %DEFAULT, servers => $servers, size => $size, backend => 80, port => 80 };
    return !_try($self->_stock_conf);
}

# A backend of all servers: all addresses of this machine, every request is answered at
# once from memory, and no connection is closed that may be kept. For so many connections.
#   counts  1: it tells at /stub how many connections and requests it has had
my $BACKEND_HOLDS = 15_000;

sub backend {
    my ($class, $needed, %opt) = @_;
    my $most    = descriptors() - 200;
    my $holds   = $most < $BACKEND_HOLDS ? $most : $BACKEND_HOLDS;
    my $workers = 1 + int(($needed || 0) / $holds);
    $most = 60_000 if $most > 60_000;
    my $self = bless { name => 'backend', port => free_port(), dir => temp_dir(), workers => $workers }, $class;
    my $reuseport = $workers > 1 ? ' reuseport' : '';
    my $counts    = $opt{counts} ? "\n        location = /stub { stub_status; }" : '';
    return $self->_start_nginx(_conf($workers, $most, '', <<"END"));
    server {
        listen *:$self->{port}$reuseport backlog=4096;
        keepalive_timeout 1h;
        location / { return 200 "ok\n"; }$counts
    }
END
}

# One system, ready to take requests:
#   system     stock or control (the same once more); module, warm (with least_conn warm) or kept
#              (with stock keepalive); redis (the module, with a Redis of its own); haproxy or lua
#   servers    how many
#   workers    worker processes (threads of HAProxy)
#   keepalive  upstream connections that a worker keeps; 0: as it does without a word
#   backend    the port where all servers listen
#   method     how stock nginx or the module balances, least_conn unless told; empty: no word of it
#   choices    the module that choices.c makes: it chooses at /choices, and nothing need listen
# and, for the module:
#   registry   directives for its zone, instead of those for a measurement
#   size       of its zone; log: the level of its log
#   preload    a library to load into it, and env: variables for that
#   register   0: nobody is registered yet
sub new {
    my ($class, %opt) = @_;
    my $self = bless { %DEFAULT, %opt, port => free_port(), dir => temp_dir() }, $class;
    $self->{name} = "$self->{system}, $self->{servers} servers";
    if ($self->{system} eq 'redis') {
        require RegistryTest::Redis;
        $self->{redis} = RegistryTest::Redis->new;
        $self->{registry} .= ' redis ' . $self->{redis}->url . ';';
    }
    $self->{method} = 'least_conn warm' if $self->{system} eq 'warm';
    if    ($self->{system} eq 'haproxy')             { $self->_start_haproxy }
    elsif ($self->{system} eq 'lua')                 { $self->_start_nginx(_lua_conf($self)) }
    elsif ($self->{system} =~ /^(?:stock|control)$/) { $self->_start_nginx($self->_stock_conf) }
    else                                             { $self->_start_nginx($self->_module_conf) }

    $self->register if $self->{register} && $self->{system} !~ /^(?:stock|control|haproxy)$/;
    if ($self->{servers} && !$self->{choices}) {
        my $answer = RegistryTest::Client::http('GET', $self->url('/'));
        die "$self->{name} answered $answer->{status}: " . slurp("$self->{dir}/error.log") . "\n"
            if $self->{register} && $answer->{status} != 200;
    }
    return $self;
}

# Gives each worker, or thread, a processor of its own.
sub pin_workers {
    my ($self) = @_;
    my @tasks = $self->workers;
    if ($self->{system} eq 'haproxy') {
        opendir my $dir, "/proc/$self->{pid}/task" or die "HAProxy has gone\n";
        @tasks = sort { $a <=> $b } grep { /^\d+$/ } readdir $dir;
    }
    my @processors = processors();
    pin($processors[ $_ % @processors ], $tasks[$_]) for 0 .. $#tasks;
    return;
}

# Moves all workers to these processors, as taskset takes them.
sub move {
    my ($self, $processors) = @_;
    return if ($self->{on} || '') eq $processors;
    pin($processors, $self->workers);
    $self->{on} = $processors;
    return;
}

# How many descriptors its workers have open: those of connections come and go.
sub descriptors_open {
    my ($self) = @_;
    my $open = 0;
    for my $pid ($self->workers) {
        opendir my $dir, "/proc/$pid/fd" or next;
        $open += () = readdir $dir;
    }
    return $open;
}

sub address { return "127.0.0.1:$_[0]{port}" }
sub url     { return 'http://' . $_[0]->address . $_[1] }

# The processes that do the work.
sub workers {
    my ($self) = @_;
    my @pids = ($self->{system} || '') eq 'haproxy' ? $self->{pid} : children($self->{pid});
    return @pids;
}

sub stop {
    my ($self) = @_;
    stop_process($self->{pid}, TERM => 5, KILL => 2);
    $self->{redis}->stop if $self->{redis};
    return;
}

# The processes of others that it needs.
sub helpers { my ($self) = @_; return $self->{redis} ? $self->{redis}->pid : () }

# What its log holds that a good run does not.
sub complaints {
    my ($self) = @_;
    return grep { /\[(?:error|crit|alert|emerg)\]|exited on signal/ } split /\n/, slurp("$self->{dir}/error.log");
}

# Adds the servers by requests, as they would do themselves.
sub register {
    my ($self) = @_;
    my ($method, $path) = $self->{system} eq 'lua' ? ('GET', '/upstream/add') : ('POST', '/upstream/add');
    my @paths = map { "$path?host=" . server_host($_) . "&port=$self->{backend}" } 0 .. $self->{servers} - 1;
    in_order($self->address, $method, \@paths, sub {
        my ($response) = @_;
        die "$self->{name}: a server was refused: $response->{status} $response->{body}\n"
            if $response->{status} != 200;
        return 1;
    });
    return;
}

# Configurations

# Returns what makes the text of an nginx.conf for a directory.
sub _conf {
    my ($workers, $connections, $modules, $http, $log) = @_;
    $log ||= 'error';
    my $user  = $> == 0 ? "user root;\n" : '';
    my $files = descriptors();
    return sub {
        my ($dir) = @_;
        return <<"END";
${modules}${user}daemon off;
worker_processes $workers;
worker_rlimit_nofile $files;
error_log $dir/error.log $log;
pid $dir/nginx.pid;
events {
    worker_connections $connections;
}
http {
    access_log off;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    keepalive_requests 1000000000;
$http}
END
    };
}

# The settings of a connection that is kept are the same for all who can be told: it is
# never too old.
my $STOCK_KEEPALIVE = <<'END';
        keepalive %d;
        keepalive_timeout 1h;
        keepalive_requests 1000000000;
        keepalive_time 24h;
END

my $KEPT_PROXY = <<'END';
            proxy_http_version 1.1;
            proxy_set_header Connection "";
END

# The same for all kinds of nginx but for what chooses a server and keeps connections, and
# that is $balance.
sub _proxy_conf {
    my ($self, $modules, $balance, %more) = @_;
    # One listening socket for each worker: connections spread over them evenly.
    my $reuseport = $self->{workers} > 1 ? ' reuseport' : '';
    my $proxy = defined $more{proxy} ? $more{proxy} : $KEPT_PROXY;
    # Connections of clients, connections that are kept, and some that are being opened.
    my $connections = 8192 + $self->{keepalive};
    $_ = defined $_ ? $_ : '' for @more{qw(http server)};
    return _conf($self->{workers}, $connections, $modules, <<"END", $self->{log});
$more{http}
    upstream backend {
$balance
    }
    server {
        listen 127.0.0.1:$self->{port}$reuseport backlog=4096;
        location / {
            proxy_pass http://backend;
$proxy
        }
        location = /ok {
            return 200 "ok\n";
        }
$more{server}
    }
END
}

# The parts of an upstream that may be left out: how it balances, and what it keeps.
sub _method { my ($self, $directive) = @_; return $self->{method} eq '' ? '' : "        $directive$self->{method};\n" }

sub _stock_keepalive { my ($self) = @_; return $self->{keepalive} ? sprintf $STOCK_KEEPALIVE, $self->{keepalive} : '' }

# What times choices, and where it does.
sub _choices_module { my ($self) = @_; return $self->{choices} ? "load_module $self->{choices};\n" : '' }

sub _choices_place { my ($self) = @_; return $self->{choices} ? "        location = /choices { choices backend; }\n" : '' }

sub _stock_conf {
    my ($self) = @_;
    my $servers = join '', map { "        server " . server_host($_) . ":$self->{backend};\n" } 0 .. $self->{servers} - 1;
    return $self->_proxy_conf(
        $self->_choices_module, "        zone backend $self->{size};\n" . $self->_method('') . $servers . $self->_stock_keepalive,
        server => $self->_choices_place);
}

sub _module_conf {
    my ($self) = @_;
    my $balance = "        registry main;\n" . $self->_method('registry_balance ');
    $balance .= $self->{system} eq 'kept' ? $self->_stock_keepalive
        : "        registry_keepalive $self->{keepalive} timeout=1h requests=1000000000 time=24h;" if $self->{keepalive};
    return $self->_proxy_conf(
        "load_module $MODULE;\n" . $self->_choices_module, $balance,
        http   => "    registry main $self->{size} { $self->{registry} }",
        server => "        location /upstream/ { registry_api main; }\n" . $self->_choices_place,
    );
}

# As it is written: with the headers that it sets and without kept connections. Those are added
# where keepalive is not 0.
sub _lua_conf {
    my ($self) = @_;
    $self = bless { %DEFAULT, port => free_port(), keepalive => 0 } unless $self;
    my $balance = <<'END';
        server 0.0.0.1;
        balancer_by_lua_block {
            local upstream = require "upstream"
            upstream.least_conn_balancer()
        }
END
    my $proxy = <<'END';
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_connect_timeout   60s;
            proxy_read_timeout      90s;
            proxy_send_timeout      60s;
END
    if ($self->{keepalive}) {
        $balance .= $self->_stock_keepalive;
        $proxy   .= $KEPT_PROXY;
    }
    return $self->_proxy_conf(
        "load_module $LUA_MODULES/ndk_http_module.so;\nload_module $LUA_MODULES/ngx_http_lua_module.so;\n",
        $balance, proxy => $proxy, http => <<"END", server => <<'END');
    lua_package_path "$HERE/shared_dict/?.lua;;";
    lua_shared_dict upstream_servers 10m;
    init_worker_by_lua_block {
        local upstream = require "upstream"
        upstream.init_cleanup_timer()
    }
END
        location /upstream/add {
            content_by_lua_block {
                local upstream = require "upstream"
                upstream.add_server()
            }
        }
END
}

sub _start_nginx {
    my ($self, $conf) = @_;
    spew("$self->{dir}/nginx.conf", $conf->($self->{dir}));
    my @command = ($NGINX, '-p', "$self->{dir}/", '-c', "$self->{dir}/nginx.conf");
    push @command, '-e', "$self->{dir}/error.log" if binary_info($NGINX)->{number} >= 1.019005;
    my %env = %{ $self->{env} || {} };
    $env{LD_PRELOAD} = $self->{preload} if $self->{preload};
    $self->_run(\%env, @command);
    wait_until(sub { $self->workers == ($self->{workers} || 1) }, 10)
        or die "$self->{name}: the workers did not start\n";
    return $self;
}

# The settings that the figure to beat was measured with, and idle connections that stay
# while the others are measured.
sub _start_haproxy {
    my ($self) = @_;
    my $servers = join '', map { "    server s$_ " . server_host($_) . ":$self->{backend}\n" } 0 .. $self->{servers} - 1;
    # It makes room for two descriptors a connection, and its pool may fill nine tenths of it.
    my $connections = int(0.7 * $self->{servers}) + 500;
    spew("$self->{dir}/haproxy.cfg", <<"END");
global
    nbthread $self->{workers}
    maxconn $connections
    tune.pool-low-fd-ratio 90
    tune.pool-high-fd-ratio 100
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    http-reuse always
    default-server pool-purge-delay 1h
frontend front
    bind 127.0.0.1:$self->{port}
    default_backend back
backend back
    balance leastconn
$servers
END
    return $self->_run({}, 'haproxy', '-db', '-f', "$self->{dir}/haproxy.cfg");
}

# Starts a program and waits until it listens.
sub _run {
    my ($self, $env, @command) = @_;
    local $ENV{PATH} = join ':', _path();
    my $out = "$self->{dir}/out";
    $self->{pid} = spawn(\@command, stdout => $out, stderr => $out, env => $env);
    wait_until(sub {
        die "$self->{name} did not start: " . slurp($out) . slurp("$self->{dir}/error.log") . "\n"
            if !alive($self->{pid});
        return eval { RegistryTest::Client->new($self->address)->open->close; 1 };
    }, 30) or die "$self->{name} does not listen: " . slurp($out) . "\n";
    return $self;
}

1;
