package Test::Nginx::Util;

# The settings of a test file and the nginx that its blocks talk to: server root,
# configuration, start, stop, logs. Names, defaults and variables are those of the
# Test::Nginx on CPAN, besides these: the server root is a fresh directory and the port
# a free one unless the environment says otherwise, the log level is info, and an nginx
# that raises an alarm fails its block.

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';
use File::Path qw(make_path remove_tree);
use File::Spec ();
use RegistryTest::Process qw(
    free_port temp_dir slurp spew spawn alive exit_status stop_process wait_until time_scale
    on_exit bad_log_lines find_binary binary_info valgrind_command valgrind_reports
);
use Test::More ();

# What a test file may call.
our @SETTINGS = qw(
    repeat_each no_shuffle no_long_string no_root_location workers worker_connections
    master_on master_off master_process_enabled log_level timeout config_preamble
    check_accum_error_log server_name server_addr server_root html_dir server_port
    server_port_for_client env_to_nginx add_block_preprocessor add_cleanup_handler bail_out
);
our @EXPORT_OK = (@SETTINGS, qw(
    %Set start_nginx relaunch_nginx stop_nginx nginx_is_running start_status
    log_lines wait_for_log forget_log_position access_log_lines expand_env
    write_user_files alarming_lines nginx_said
));

our %Set = (
    repeat_each        => 1,
    no_shuffle         => $ENV{TEST_NGINX_NO_SHUFFLE} || 0,
    workers            => 1,
    worker_connections => 64,
    master             => $ENV{TEST_NGINX_MASTER_PROCESS} || 'off',
    log_level          => $ENV{TEST_NGINX_LOG_LEVEL} || 'info',
    timeout            => $ENV{TEST_NGINX_TIMEOUT} || 3 * time_scale(),
    config_preamble    => '',
    server_name        => 'localhost',
    server_addr        => '127.0.0.1',
    env                => [],
    preprocessors      => [],
    cleanup_handlers   => [],
);
$Set{server_port} = $ENV{TEST_NGINX_SERVER_PORT} || $ENV{TEST_NGINX_PORT} || free_port();
$Set{server_port_for_client} = $ENV{TEST_NGINX_CLIENT_PORT} || $Set{server_port};

# A directory of ours is emptied for each block; of one that the environment names only
# what a test writes there is removed.
my $own_root = !$ENV{TEST_NGINX_SERVROOT};
my $root = $own_root ? temp_dir() : File::Spec->rel2abs($ENV{TEST_NGINX_SERVROOT});

$ENV{TEST_NGINX_SERVER_ROOT} = $root;
$ENV{TEST_NGINX_SERVER_PORT} = $Set{server_port} unless defined $ENV{TEST_NGINX_SERVER_PORT};
for my $i (1 .. 9) {
    $ENV{"TEST_NGINX_PORT_$i"} = free_port() unless defined $ENV{"TEST_NGINX_PORT_$i"};
}

# Each of these sets with an argument, and returns the setting.
for my $name (qw(
    repeat_each workers worker_connections log_level timeout server_name server_addr
    server_port server_port_for_client
)) {
    no strict 'refs';
    *$name = sub (@) { $Set{$name} = $_[0] if @_; return $Set{$name} };
}
for my $name (qw(no_shuffle no_long_string no_root_location check_accum_error_log)) {
    no strict 'refs';
    *$name = sub () { $Set{$name} = 1 };
}

sub master_on ()                { $Set{master} = 'on' }
sub master_off ()               { $Set{master} = 'off' }
sub config_preamble ($)         { $Set{config_preamble} = $_[0] }
sub server_root ()              { return $root }
sub html_dir ()                 { return "$root/html" }
sub add_block_preprocessor (&)  { unshift @{ $Set{preprocessors} }, $_[0] }
sub add_cleanup_handler ($)     { unshift @{ $Set{cleanup_handlers} }, $_[0] }
sub bail_out (@)                { Test::More::BAIL_OUT(join '', @_) }

sub master_process_enabled (@) {
    $Set{master} = $_[0] ? 'on' : 'off' if @_;
    return $Set{master};
}

sub env_to_nginx (@) {
    croak 'env_to_nginx: no arguments specified' unless @_;
    for my $variable (@_) {
        croak "env_to_nginx: bad argument value: $variable" if $variable !~ /^[A-Za-z_][^\n]*$/;
        push @{ $Set{env} }, $variable;
    }
}

on_exit(sub { $_->() for @{ $Set{cleanup_handlers} } });

# Files

# $TEST_NGINX_NAME in a text becomes the variable's value; $TEST_NGINX_RAND_PORT_n a port
# of this block alone.
my %rand_port;
my $rand_port_block = '';

sub expand_env {
    my ($text, $block) = @_;
    return $text unless defined $text;
    %rand_port = () if $rand_port_block ne $block->name;
    $rand_port_block = $block->name;
    $text =~ s{\$(TEST_NGINX_[A-Z0-9_]+)}{
        my $name = $1;
        $name =~ /^TEST_NGINX_RAND_PORT_\d+$/ ? ($rand_port{$name} ||= free_port())
            : defined $ENV{$name} ? $ENV{$name}
            : die "no environment $name defined\n";
    }ge;
    return $text;
}

sub _set_up_root {
    if ($own_root) {
        remove_tree($root, { keep_root => 1 });
    }
    else {
        remove_tree(map({ "$root/$_" } qw(conf html logs)), glob("$root/*_temp $root/*_cache"));
    }
    make_path(map { "$root/$_" } qw(conf html logs));
    spew("$root/html/index.html",
        '<html><head><title>It works!</title></head><body>It works!</body></html>');
    return;
}

# The section user_files: ">>> name [date]" before each file's text, or an array of
# [name, text, date]. Relative names are in the html directory.
sub write_user_files {
    my ($block) = @_;
    my $files = $block->user_files or return;
    if (!ref $files) {
        my @list;
        for my $line (split /^/m, $files) {
            if ($line =~ /^>>> (\S+)(?:\s+(.+))?/) { push @list, [ $1, '', $2 ] }
            elsif (@list)                          { $list[-1][1] .= $line }
        }
        $files = \@list;
    }
    for my $file (@$files) {
        my ($name, $text, $date) = @$file;
        my $path = $name =~ m{^/} ? $name : "$root/html/$name";
        make_path($1) if $path =~ m{^(.*)/} && !-d $1;
        spew($path, expand_env(defined $text ? $text : '', $block));
        system("TZ=GMT touch -t '$date' '$path'") if $date;
    }
    return;
}

# nginx would otherwise use the temporary paths that it was built with.
sub _temp_paths {
    my ($config) = @_;
    my $built = binary_info(find_binary())->{text};
    my $lines = '';
    for my $kind (qw(client_body proxy fastcgi uwsgi scgi)) {
        next if $config =~ /\b${kind}_temp_path\b/ || $built =~ /--without-http_${kind}_module/;
        $lines .= "    ${kind}_temp_path $root/${kind}_temp;\n";
    }
    return $lines;
}

sub _config {
    my ($block, $config) = @_;
    my ($http, $main, $post_main) = map {
        my $text = expand_env(scalar $block->$_, $block);
        defined $text ? $text : '';
    } qw(http_config main_config post_main_config);
    my $modules = join '', map { "load_module $_;\n" } split ' ', $ENV{TEST_NGINX_LOAD_MODULES} || '';
    my $log_level = $block->log_level || $Set{log_level};
    my $error_log = $block->error_log_file || "$root/logs/error.log";
    my $server_name = $block->server_name;
    $server_name = $Set{server_name} unless defined $server_name;
    $server_name =~ s/(['\\])/\\$1/g;
    my $env = join '', map { 'env ' . (/\s/ ? "'$_'" : $_) . ";\n" } @{ $Set{env} };
    my $user = defined $ENV{TEST_NGINX_WORKER_USER} ? "user $ENV{TEST_NGINX_WORKER_USER};\n"
        : $> == 0 ? "user root;\n" : '';
    my $event_type = $ENV{TEST_NGINX_EVENT_TYPE} ? "    use $ENV{TEST_NGINX_EVENT_TYPE};\n" : '';
    my $root_location = $Set{no_root_location} ? '' : <<"EOF";
        location / {
            root $root/html;
            index index.html index.htm;
        }
EOF
    return <<"EOF";
${modules}worker_processes $Set{workers};
daemon off;
master_process $Set{master};
error_log $error_log $log_level;
pid $root/logs/nginx.pid;
env LD_PRELOAD;
env LD_LIBRARY_PATH;
env ASAN_OPTIONS;
$env
$main

http {
    access_log $root/logs/access.log;
    default_type text/plain;
    keepalive_timeout 68;
@{[ _temp_paths($http) ]}
$http

    server {
        listen $Set{server_port};
        server_name '$server_name';

        client_max_body_size 30M;

$Set{config_preamble}

$config

$root_location    }
}

$post_main

events {
    accept_mutex off;
    worker_connections $Set{worker_connections};
$event_type}
$user
EOF
}

# nginx

my $pid;
my $log_position = 0;

sub nginx_is_running { return $pid && alive($pid) }

sub _launch {
    my ($must_die) = @_;
    unlink "$root/logs/nginx.pid";
    my $binary = find_binary();
    my @command = ($binary, '-p', "$root/", '-c', "$root/conf/nginx.conf");
    # Without it, complaints of the configuration go where the builder of nginx chose:
    # with Debian's to standard error alone.
    push @command, '-e', "$root/logs/error.log" if binary_info($binary)->{number} >= 1.019005;
    unshift @command, valgrind_command("$root/logs") unless $must_die;
    $pid = spawn(\@command, stderr => "$root/logs/stderr.log");
    # The pid file is written once the sockets listen.
    wait_until(
        sub { slurp("$root/logs/nginx.pid") =~ /^\d+\n/ || !alive($pid) }, 20 * time_scale());
    return alive($pid);
}

# Writes everything for the block and starts nginx; true when it runs. must_die: it is
# hoped not to.
sub start_nginx {
    my ($block, $config, $must_die) = @_;
    _set_up_root();
    write_user_files($block);
    spew("$root/conf/nginx.conf", _config($block, $config));
    return _launch($must_die);
}

# The same once more, for one that must die; and how it died: its wait status, as in $?.
sub relaunch_nginx { return _launch(1) }
sub start_status   { return $pid ? exit_status($pid) : undef }

# QUIT, and TERM if it does not. Returns the signal that ended nginx; nothing when none
# ran, or '' when it had gone by itself.
sub stop_nginx {
    return unless $pid;
    my $signal = alive($pid) ? stop_process($pid, QUIT => 3, TERM => 3) : '';
    undef $pid;
    return $signal;
}

# Logs

sub forget_log_position { $log_position = 0; return }

# The lines of the error log since the last look; peek => 1: the next look sees them too.
sub log_lines {
    my (%opt) = @_;
    my $text = slurp("$root/logs/error.log", $Set{check_accum_error_log} ? 0 : $log_position);
    $log_position += length $text unless $opt{peek} || $Set{check_accum_error_log};
    return split /^/m, $text;
}

# The same, once the code is content with the lines, or after a second in which it was not.
sub wait_for_log {
    my ($content) = @_;
    wait_until(sub { $content->(log_lines(peek => 1)) }, 1 * time_scale());
    return log_lines();
}

sub access_log_lines { return split /^/m, slurp("$root/logs/access.log") }

# All of this nginx's life that no test may produce unnoticed.
sub alarming_lines {
    my @lines = bad_log_lines(slurp("$root/logs/error.log"));
    # Standard error repeats what is logged before the configuration is read; it alone
    # has what a process says that dies before it has a log.
    push @lines, grep { !/\[(?:emerg|alert)\]/ || !@lines } bad_log_lines(slurp("$root/logs/stderr.log"));
    return (@lines, split /\n/, valgrind_reports("$root/logs"));
}

# For the diagnostics of a failure: the end of the log, and standard error.
sub nginx_said {
    my @lines = split /\n/, slurp("$root/logs/error.log");
    splice @lines, 0, @lines - 20 if @lines > 20;
    return join "\n", @lines, slurp("$root/logs/stderr.log");
}

1;
